//! Enums whose variants are counted in one place.

/// Declares an enum without fields, and the list `ALL` of its variants in their order, so that a new variant
/// is in everything that is made for all of them: labels, counters, tables.
#[macro_export]
macro_rules! enumerate {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($(#[$attribute:meta])* $variant:ident,)+ }) => {
        $(#[$meta])*
        $vis enum $name {
            $($(#[$attribute])* $variant,)+
        }

        impl $name {
            /// Every variant, in order.
            $vis const ALL: [Self; [$(stringify!($variant)),+].len()] = [$(Self::$variant),+];
        }
    };
}
