use serde::{Deserialize, Serialize};

/// The `[console]` table of the config file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Where the admin port listens: `host:port`. Who reaches it can read the status without a token, so it is on
    /// loopback unless somebody says otherwise.
    pub listen: String,
    /// Address of the other master's admin port, such as `http://10.0.0.2:4080`: the pages of a master that does not
    /// decide lead there. Empty for none.
    pub other: String,
}

impl ConsoleConfig {
    /// Where the admin port is unless it is configured, and where commands look for it.
    pub const LISTEN: &str = "127.0.0.1:4080";
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self { listen: Self::LISTEN.into(), other: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_named() {
        assert_eq!(toml::from_str::<ConsoleConfig>("").unwrap(), ConsoleConfig::default());
        let misspelt = toml::from_str::<ConsoleConfig>("lisden = '[::1]:4080'").unwrap_err();
        assert!(misspelt.to_string().contains("lisden"), "{misspelt}");
    }
}
