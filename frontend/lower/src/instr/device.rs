//! `RUN --device=`: which devices of the machine a step wants. Whether there are any is not known here.

use rbuild_dockerfile::{CsvField, CsvFlag};
use rbuild_graph::CdiDevice;

use crate::codes;
use crate::ctx::At;
use crate::fault::Fault;
use crate::gotext;

/// Reads a flag: `[name=]NAME[,required[=BOOL]]`. Devices are optional unless the flag says otherwise.
pub(crate) fn parse(at: At<'_>, flag: &CsvFlag) -> Result<CdiDevice, Fault> {
    let mut name = String::new();
    let mut required = false;
    for field in &flag.fields {
        apply(at, field, &mut name, &mut required)?;
    }
    Ok(CdiDevice { name, optional: !required })
}

fn apply(at: At<'_>, field: &CsvField, name: &mut String, required: &mut bool) -> Result<(), Fault> {
    let CsvField { key, value } = field;
    let fault = |message: String| at.error(codes::DEVICE, key.span, message);
    match (key.value.to_lowercase().as_str(), value) {
        ("required", None) => *required = true,
        ("required", Some(value)) => {
            *required = gotext::parse_bool(&value.value).ok_or_else(|| {
                at.error(codes::DEVICE, value.span, format!("invalid value for required: {}", value.value))
                    .help("write required, required=true or required=false")
            })?;
        }
        ("name", Some(_)) if !name.is_empty() => {
            return Err(
                fault(format!("device name already set to {name}")).help("write a second --device for it")
            );
        }
        ("name", Some(value)) => name.clone_from(&value.value),
        // A qualified name has an `=` of its own.
        (_, Some(value)) if name.is_empty() => *name = format!("{}={}", key.value, value.value),
        (_, None) if name.is_empty() => name.clone_from(&key.value),
        (_, None) => {
            return Err(fault(format!("invalid field '{}' must be a key=value pair", key.value))
                .help("the name of a device may be followed by required"));
        }
        (known, Some(value)) => {
            let fault = fault(format!("unexpected key '{known}' in '{}={}'", key.value, value.value));
            return Err(match rbuild_diag::nearest(known, ["name", "required"]) {
                Some(near) => fault.help(format!("did you mean {near}?")),
                None => fault.help("the fields of --device are name and required"),
            });
        }
    }
    Ok(())
}
