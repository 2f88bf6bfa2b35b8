use std::str::FromStr;

use ecow::EcoString;

use super::{
    ShipError,
    batch::{KEY_BYTES, Limits},
};
use crate::{KinesisConfig, event::LINE_BYTES_MAX};

impl KinesisConfig {
    /// What a call and a record may hold.
    ///
    /// # Errors
    /// When a setting is beyond what the service takes, or too small for an event.
    pub(super) fn limits(&self) -> Result<Limits, ShipError> {
        let within = |setting, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(ShipError::Setting { setting, value, least, most })
        };
        let event = LINE_BYTES_MAX + KEY_BYTES;
        within("call_records_max", self.call_records_max, 1, 500)?;
        within("call_bytes_max", self.call_bytes_max, event, 10 << 20)?;
        within("record_bytes_max", self.record_bytes_max, event, self.call_bytes_max)?;
        within("record_bytes", self.record_bytes, 1, self.record_bytes_max)?;
        within("calls_max", self.calls_max, 1, 64)?;
        within("buffer_bytes_max", self.buffer_bytes_max, event, 1 << 30)?;
        Ok(Limits {
            call_records_max: self.call_records_max,
            call_bytes_max: self.call_bytes_max,
            record_bytes_max: self.record_bytes_max,
            record_bytes: self.record_bytes,
            linger: self.linger,
            buffer_bytes_max: self.buffer_bytes_max,
        })
    }
}

/// Which stream, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub stream: EcoString,
    /// Its region; without one, that of the environment or the profile.
    pub region: Option<EcoString>,
    /// Another endpoint than the region's, as a URL.
    pub endpoint: Option<EcoString>,
}

impl std::fmt::Display for Target {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "kinesis://{}", self.stream)?;
        let region = self.region.iter().map(|region| ("region", region));
        let endpoint = self.endpoint.iter().map(|endpoint| ("endpoint", endpoint));
        for (at, (name, value)) in region.chain(endpoint).enumerate() {
            write!(out, "{}{name}={value}", if at == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

/// `kinesis://STREAM?region=REGION&endpoint=URL`; both behind the stream may be left out.
impl FromStr for Target {
    type Err = ShipError;
    fn from_str(text: &str) -> Result<Self, ShipError> {
        let wrong = || ShipError::NoTarget { text: text.into() };
        let rest = text.strip_prefix("kinesis://").ok_or_else(wrong)?;
        let (stream, query) = rest.split_once('?').unwrap_or((rest, ""));
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || "_.-".contains(letter);
        if stream.is_empty() || stream.len() > 128 || !stream.chars().all(is_name) {
            return Err(wrong());
        }
        let mut target = Self { stream: stream.into(), region: None, endpoint: None };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').ok_or_else(wrong)? {
                ("region", region) => target.region = Some(region.into()),
                ("endpoint", endpoint) => target.endpoint = Some(endpoint.into()),
                _ => return Err(wrong()),
            }
        }
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_as_it_is_written() {
        for text in [
            "kinesis://events",
            "kinesis://events?region=eu-central-1",
            "kinesis://a.b-c_1?region=us-east-1&endpoint=http://127.0.0.1:5055",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for text in
            ["events", "kinesis://", "kinesis://a b", "kinesis://a?zone=1", "kinesis://a?region"]
        {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains("kinesis://STREAM?region=") && error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_limit_that_the_service_does_not_have_is_refused_by_its_name() {
        let error = |config: KinesisConfig| config.limits().unwrap_err().to_string();
        let defaults = KinesisConfig::default;
        assert!(
            error(KinesisConfig { call_records_max: 501, ..defaults() })
                .contains("call_records_max")
        );
        assert!(
            error(KinesisConfig { record_bytes_max: 10, ..defaults() })
                .contains("record_bytes_max")
        );
        assert!(defaults().limits().is_ok());
    }
}
