//! Metrics that are kept elsewhere, and read when somebody asks.

use std::fmt;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::{Finding, Reading};

/// Gauges of one family, by the values of a label.
pub(super) struct Labelled(pub(super) &'static str, pub(super) Vec<(&'static str, Reading)>);

impl fmt::Debug for Labelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.1.iter().map(|(value, _)| value)).finish()
    }
}

impl EncodeMetric for Labelled {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (value, reading) in &self.1 {
            encoder.encode_family(&[(self.0, *value)])?.encode_gauge(&reading())?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// Counters of one family, by the values of a label.
pub(super) struct LabelledCounts(pub(super) &'static str, pub(super) Vec<(&'static str, Reading)>);

impl fmt::Debug for LabelledCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.1.iter().map(|(value, _)| value)).finish()
    }
}

impl EncodeMetric for LabelledCounts {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (value, reading) in &self.1 {
            encoder.encode_family(&[(self.0, *value)])?.encode_counter::<NoLabelSet, u64, u64>(&reading(), None)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

/// A counter.
pub(super) struct Count(pub(super) Reading);

impl fmt::Debug for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Count").field(&(self.0)()).finish()
    }
}

impl EncodeMetric for Count {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_counter::<NoLabelSet, u64, u64>(&(self.0)(), None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

/// A gauge that is not there while nothing is known.
pub(super) struct Found(pub(super) Finding);

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Found").field(&(self.0)()).finish()
    }
}

impl EncodeMetric for Found {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        (self.0)().map_or(Ok(()), |found| encoder.encode_gauge(&found))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// A gauge.
pub(super) struct Gauge(pub(super) Reading);

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gauge").field(&(self.0)()).finish()
    }
}

impl EncodeMetric for Gauge {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&(self.0)())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}
