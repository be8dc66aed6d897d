//! What holds for the whole system, whichever part changes: that every call is guarded, who imports whom,
//! stored forms, and random calls against a model.

mod coverage;
mod differential;
mod format_compat;
mod golden;
mod layering;
mod model_based;
