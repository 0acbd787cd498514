//! `EXPOSE`: ports and ranges of ports.

use std::net::IpAddr;

use rbuild_diag::Span;
use rbuild_dockerfile::{Word, expand_words};
use rbuild_oci::Empty;

use crate::codes;
use crate::ctx::{At, Ctx, expand_error};
use crate::fault::Fault;
use crate::gotext;
use crate::lint;
use crate::stage::Run;

/// `EXPOSE`. BuildKit sorts the words before it expands them; the history shows it.
pub(crate) fn lower(ctx: &mut Ctx<'_>, run: &mut Run<'_>, at: At<'_>, words: &[Word]) -> Result<(), Fault> {
    let mut sorted: Vec<&Word> = words.iter().collect();
    sorted.sort_by(|a, b| a.value.cmp(&b.value));
    let mut ports = Vec::new();
    for word in sorted {
        let env = run.state.env.clone();
        let lookup = |name: &str| env.get(name).map(str::to_owned);
        let specs = expand_words(&word.value, ctx.parsed.directives.escape, &lookup)
            .map_err(|error| expand_error(at, word, &error))?;
        for spec in specs {
            let parsed = parse(&spec).map_err(|reason| {
                at.error(codes::PORT, word.span, format!("invalid port {spec:?}: {reason}"))
                    .help("write a port or a range, with a protocol if it is not tcp: 80, 8000-8010/udp")
            })?;
            check(ctx, at, word.span, &spec, &parsed);
            ports.extend(parsed.ports());
        }
    }
    run.state.image.commit(format!("EXPOSE {}", gotext::plain_list(&ports)), false, ctx.epoch);
    run.state.image.edit().exposed_ports.extend(ports.into_iter().map(|port| (port, Empty {})));
    Ok(())
}

struct Spec {
    first: u16,
    last: u16,
    /// As written.
    protocol: String,
    on_host: bool,
}

impl Spec {
    fn ports(&self) -> impl Iterator<Item = String> {
        let protocol = self.protocol.to_ascii_lowercase();
        (self.first..=self.last).map(move |port| format!("{port}/{protocol}"))
    }
}

fn check(ctx: &mut Ctx<'_>, at: At<'_>, span: Span, text: &str, spec: &Spec) {
    if spec.protocol.chars().any(|c| c.is_ascii_uppercase()) {
        let message = format!("the protocol of {text:?} should be lower-case");
        ctx.warn(lint::EXPOSE_CASING, at, span, message, None);
    }
    if spec.on_host {
        let message = format!("EXPOSE {text} names a host address or port, which has no effect");
        let help = "name the container's port only; hosts publish it with docker run --publish".to_owned();
        ctx.warn(lint::EXPOSE_FORMAT, at, span, message, Some(help));
    }
}

/// `[[ip:]host:]port[-port][/protocol]`.
fn parse(text: &str) -> Result<Spec, String> {
    let mut parts: Vec<&str> = text.rsplitn(3, ':').collect();
    parts.reverse();
    let (ip, host, container) = match parts.as_slice() {
        [container] => ("", "", *container),
        [host, container] => ("", *host, *container),
        [ip, host, container] => (*ip, *host, *container),
        _ => return Err("it is empty".to_owned()),
    };
    let (range, protocol) = container.split_once('/').unwrap_or((container, ""));
    if range.is_empty() {
        return Err("it names no port".to_owned());
    }
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "" => "tcp",
        "tcp" | "udp" | "sctp" => protocol,
        _ => return Err(format!("{protocol:?} is no protocol; there are tcp, udp and sctp")),
    };
    let bare_ip = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
    if !ip.is_empty() && bare_ip.parse::<IpAddr>().is_err() {
        return Err(format!("{ip:?} is no IP address"));
    }
    let (first, last) = parse_range(range)?;
    if !host.is_empty() {
        let (host_first, host_last) = parse_range(host)?;
        if last - first != host_last - host_first && first != last {
            return Err(format!("the ranges {range} and {host} have different lengths"));
        }
    }
    let on_host = !ip.is_empty() || !host.is_empty();
    Ok(Spec { first, last, protocol: protocol.to_owned(), on_host })
}

fn parse_range(text: &str) -> Result<(u16, u16), String> {
    let number = |text: &str| {
        text.parse::<u16>().map_err(|_| format!("{text:?} is no port number between 0 and 65535"))
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    if last < first {
        return Err(format!("the range {text} goes backwards"));
    }
    Ok((first, last))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn ports_ranges_and_protocols() {
        let show = |text: &str| parse(text).map(|spec| spec.ports().collect::<Vec<_>>().join(" "));
        for (text, want) in [
            ("80", "80/tcp"),
            ("53/UDP", "53/udp"),
            ("8000-8002/sctp", "8000/sctp 8001/sctp 8002/sctp"),
            ("8080:80", "80/tcp"),
            ("127.0.0.1:8080:80", "80/tcp"),
            ("[::1]:8080:80", "80/tcp"),
            ("8000-8010:80", "80/tcp"),
        ] {
            assert_eq!(show(text).as_deref(), Ok(want), "{text}");
        }
        for bad in ["", "/tcp", "80/http", "x", "70000", "9-8", "1-3:5-6", "x:1:2", "1-2-3"] {
            assert!(show(bad).is_err(), "{bad}");
        }
    }
}
