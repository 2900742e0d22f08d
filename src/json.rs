//! JSON objects that mean one thing only.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};

/// An object in which no two names are equal, not even when their case is ignored: otherwise one reader could check one
/// member and another use the other.
#[expect(missing_debug_implementations, reason = "the members may be a token's claims")]
pub struct UniqueMap(pub Map<String, Value>);

impl<'de> Deserialize<'de> for UniqueMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Unique;

        impl<'de> Visitor<'de> for Unique {
            type Value = UniqueMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with each name once")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<UniqueMap, A::Error> {
                let twice = || A::Error::custom("a name stands twice");
                let mut map = Map::new();
                // Names that are not their own lower case in ASCII, as nearly all are: kept in lower case.
                let mut odd = HashSet::new();
                while let Some(name) = object.next_key::<String>()? {
                    let plain = name.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase());
                    if !plain && !odd.insert(name.to_lowercase()) {
                        return Err(twice());
                    }
                    if map.insert(name, object.next_value()?).is_some() {
                        return Err(twice());
                    }
                }
                // In ASCII, the lower case of an odd name is another name.
                match odd.iter().any(|lower| lower.is_ascii() && map.contains_key(lower)) {
                    true => Err(twice()),
                    false => Ok(UniqueMap(map)),
                }
            }
        }

        deserializer.deserialize_map(Unique)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_once_whatever_its_case_or_spelling() {
        for twice in [
            r#"{"a":1,"a":2}"#,
            r#"{"a":1,"A":2}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"K":1,"\u212a":2}"#,
            r#"{"\u212a":1,"k":2}"#,
            r#"{"\u00c9":1,"\u00e9":2}"#,
            r#"{"\u00e9":1,"\u00e9":2}"#,
        ] {
            assert!(serde_json::from_str::<UniqueMap>(twice).is_err(), "{twice}");
        }
        assert_eq!(serde_json::from_str::<UniqueMap>(r#"{"a":1,"b":{"a":1}}"#).expect("an object").0.len(), 2);
        let odd = serde_json::from_str::<UniqueMap>(r#"{"aB":1,"\u00e9":2,"\u00c8":3,"b":4}"#).expect("an object");
        assert_eq!(odd.0.len(), 4);
        assert!(serde_json::from_str::<UniqueMap>("[]").is_err());
    }
}
