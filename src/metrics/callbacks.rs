//! Metrics whose values are kept elsewhere, and read at each scrape.

use std::fmt;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::{OptionalValueFn, ValueFn};

/// Gauges of one family, by the values of a label.
pub(super) struct LabelledGauges(pub(super) &'static str, pub(super) Vec<(&'static str, ValueFn)>);

impl fmt::Debug for LabelledGauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.1.iter().map(|(value, _)| value)).finish()
    }
}

impl EncodeMetric for LabelledGauges {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (label, value) in &self.1 {
            encoder.encode_family(&[(self.0, *label)])?.encode_gauge(&value())?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// Counters of one family, by the values of a label.
pub(super) struct LabelledCounters(pub(super) &'static str, pub(super) Vec<(&'static str, ValueFn)>);

impl fmt::Debug for LabelledCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.1.iter().map(|(value, _)| value)).finish()
    }
}

impl EncodeMetric for LabelledCounters {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (label, value) in &self.1 {
            encoder.encode_family(&[(self.0, *label)])?.encode_counter::<NoLabelSet, u64, u64>(&value(), None)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

/// A counter.
pub(super) struct CounterFn(pub(super) ValueFn);

impl fmt::Debug for CounterFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CounterFn").field(&(self.0)()).finish()
    }
}

impl EncodeMetric for CounterFn {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_counter::<NoLabelSet, u64, u64>(&(self.0)(), None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

/// A gauge that is absent while its value is not known.
pub(super) struct OptionalGaugeFn(pub(super) OptionalValueFn);

impl fmt::Debug for OptionalGaugeFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OptionalGaugeFn").field(&(self.0)()).finish()
    }
}

impl EncodeMetric for OptionalGaugeFn {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        (self.0)().map_or(Ok(()), |found| encoder.encode_gauge(&found))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// A gauge.
pub(super) struct GaugeFn(pub(super) ValueFn);

impl fmt::Debug for GaugeFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GaugeFn").field(&(self.0)()).finish()
    }
}

impl EncodeMetric for GaugeFn {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&(self.0)())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}
