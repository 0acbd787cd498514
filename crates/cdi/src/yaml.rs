//! YAML as the values that JSON has. Every scalar but null is text; whoever wants a number reads one from it, as specs
//! are read elsewhere. Aliases are refused: a small file could stand for a huge one.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// Deeper nesting is refused. Specs have five levels.
const MAX_DEPTH: usize = 32;

/// A sequence or mapping that is not complete, with the key that waits for its value.
enum Open {
    Sequence(Vec<Value>),
    Mapping(Map<String, Value>, Option<String>),
}

/// Reads one document.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let mut stack: Vec<Open> = Vec::new();
    let mut document = None;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| error.to_string())?;
        let here = |why: &str| format!("{why} at line {}", span.start.line());
        let value = match event {
            Event::Scalar(text, style, ..) => scalar(&text, style == ScalarStyle::Plain),
            Event::SequenceStart(..) | Event::MappingStart(..) if stack.len() == MAX_DEPTH => {
                return Err(here("nesting is too deep"));
            }
            Event::SequenceStart(..) => {
                stack.push(Open::Sequence(Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                stack.push(Open::Mapping(Map::new(), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match stack.pop() {
                Some(Open::Sequence(list)) => Value::Array(list),
                Some(Open::Mapping(map, _)) => Value::Object(map),
                None => continue,
            },
            Event::Alias(_) => return Err(here("aliases are not supported")),
            _ => continue,
        };
        match stack.last_mut() {
            Some(Open::Sequence(list)) => list.push(value),
            Some(Open::Mapping(map, key)) => match (key.take(), value) {
                (Some(key), value) => {
                    if map.insert(key.clone(), value).is_some() {
                        return Err(here(&format!("the key {key:?} is given twice")));
                    }
                }
                (None, Value::String(text)) => *key = Some(text),
                (None, _) => return Err(here("a key is no text")),
            },
            None if document.is_some() => return Err(here("there is a second document")),
            None => document = Some(value),
        }
    }
    document.ok_or_else(|| "it is empty".to_owned())
}

fn scalar(text: &str, plain: bool) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" if plain => Value::Null,
        text => Value::String(text.to_owned()),
    }
}
