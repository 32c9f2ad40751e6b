//! JSON from callers, read strictly: a name that occurs twice in one object is an error, and so is deep nesting.
//!
//! RFC 8259 leaves repeated names to the reader. Two readers that choose differently see two different requests, so none is chosen.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Arrays and objects inside each other, at most.
const MAX_DEPTH: usize = 64;

/// One JSON value and nothing after it.
pub(crate) fn parse(text: &str) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Strict { depth: 0 }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn inner<E: Error>(self) -> Result<Self, E> {
        if self.depth < MAX_DEPTH {
            Ok(Self { depth: self.depth + 1 })
        } else {
            Err(E::custom(format_args!("more than {MAX_DEPTH} levels of nesting")))
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut map = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if map.contains_key(&name) {
                return Err(A::Error::custom("a name occurs twice in one object"));
            }
            map.insert(name, members.next_value_seed(inner)?);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_serde_json_reads() {
        let check = |text: &str| {
            let expect: Value = serde_json::from_str(text).unwrap();
            assert_eq!(parse(text).unwrap(), expect, "{text}");
        };
        check("null");
        check(r#"{"a":[1,-2,3.5,1e3,true,null,"\u00e9\n",{}],"b":{"c":[]}}"#);
        check("18446744073709551615");
        check(" [ ] ");
    }

    #[test]
    fn refuses_what_readers_disagree_about() {
        let check = |text: &str, expect: &str| {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(expect), "{text}: {error}");
        };
        check(r#"{"a":1,"a":1}"#, "a name occurs twice in one object at line 1 column");
        check(r#"{"v":[{"a":1,"\u0061":2}]}"#, "a name occurs twice in one object");
        check("{} {}", "trailing characters at line 1 column 4");
        check("1e999", "number out of range");
        check("{\n  oops", "key must be a string at line 2 column 3");
    }

    #[test]
    fn nesting_has_a_limit() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(parse(&nested(MAX_DEPTH)).is_ok());
        assert!(parse(&nested(MAX_DEPTH + 1)).unwrap_err().to_string().starts_with("more than 64 levels"));
        // Far beyond the limit, the reader must stop before the stack does.
        assert!(parse(&"[".repeat(1_000_000)).is_err());
    }
}
