//! Scripts of events in, text out.

use rbuild::{BuildEvent, Stream, Timestamp, VertexId};

use super::{plain::Plain, rawjson::RawJson, tty::Tty};

const MS: i64 = 1_000_000;

fn at(ms: i64) -> Timestamp {
    Timestamp(ms * MS)
}

fn started(vertex: u32, name: &str, ms: i64) -> (BuildEvent, i64) {
    (BuildEvent::Started { vertex: VertexId(vertex), name: name.into(), why: None, at: at(ms) }, ms)
}

fn cached(vertex: u32, name: &str, ms: i64) -> (BuildEvent, i64) {
    (BuildEvent::Cached { vertex: VertexId(vertex), name: name.into() }, ms)
}

fn done(vertex: u32, ms: i64) -> (BuildEvent, i64) {
    (BuildEvent::Finished { vertex: VertexId(vertex), at: at(ms), error: None }, ms)
}

fn failed(vertex: u32, error: &str, ms: i64) -> (BuildEvent, i64) {
    (BuildEvent::Finished { vertex: VertexId(vertex), at: at(ms), error: Some(error.to_owned()) }, ms)
}

fn log(vertex: u32, data: &[u8], ms: i64) -> (BuildEvent, i64) {
    (BuildEvent::Log { vertex: VertexId(vertex), stream: Stream::Stdout, data: data.to_vec() }, ms)
}

fn status(vertex: u32, id: &str, amount: (u64, u64), done: bool, ms: i64) -> (BuildEvent, i64) {
    let (current, total) = amount;
    (
        BuildEvent::Status { vertex: VertexId(vertex), id: id.to_owned(), current, total: Some(total), done },
        ms,
    )
}

#[track_caller]
fn check_plain(script: &[(BuildEvent, i64)], want: &str) {
    let mut out = Vec::new();
    let mut plain = Plain::new(&mut out, true);
    for (event, ms) in script {
        plain.event(event, at(*ms));
    }
    plain.finish();
    assert_eq!(String::from_utf8_lossy(&out), want);
}

#[test]
fn plain_reads_like_buildkit() {
    check_plain(
        &[
            started(1, "[internal] load build definition", 0),
            done(1, 10),
            cached(2, "[a 1/2] COPY . /src", 20),
            started(3, "[a 2/2] RUN make\n  all", 30),
            log(3, b"cc a.c\ncc b.c\n", 243),
            log(3, b"half", 300),
            done(3, 1260),
            started(4, "[b 1/1] RUN false", 1300),
            failed(4, "process \"false\" did not complete successfully: exit code: 1", 1400),
            (BuildEvent::Cancelled { vertex: VertexId(5), at: at(1500) }, 1500),
            (BuildEvent::Warning { vertex: None, message: "beware".to_owned() }, 1500),
        ],
        "#1 [internal] load build definition\n#1 DONE 0.0s\n\n\
         #2 [a 1/2] COPY . /src\n#2 CACHED\n\n\
         #3 [a 2/2] RUN make   all\n#3 0.213 cc a.c\n#3 0.213 cc b.c\n#3 1.230 half\n#3 DONE 1.2s\n\n\
         #4 [b 1/1] RUN false\n#4 ERROR: process \"false\" did not complete successfully: exit code: 1\n\n\
         #5 \n#5 CANCELED\n\nWARNING: beware\n\n",
    );
}

#[test]
fn plain_steps_take_turns_of_a_second() {
    check_plain(
        &[
            started(1, "one", 0),
            started(2, "two", 0),
            log(1, b"a\n", 100),
            log(2, b"x\n", 200),
            log(1, b"b\n", 300),
            // Two has waited for a second now.
            log(2, b"y\n", 1000),
            log(1, b"c\n", 1100),
            done(1, 1200),
            done(2, 1300),
        ],
        "#1 one\n#1 0.100 a\n#1 0.300 b\n#1 ...\n\n\
         #2 two\n#2 0.200 x\n#2 1.000 y\n#2 ...\n\n\
         #1 one\n#1 1.100 c\n#1 DONE 1.2s\n\n\
         #2 two\n#2 DONE 1.3s\n\n",
    );
}

#[test]
fn plain_short_steps_are_blocks() {
    check_plain(
        &[
            started(1, "long", 0),
            started(2, "short", 0),
            log(2, b"x\n", 100),
            log(1, b"a\n", 200),
            done(2, 300),
            log(1, b"b\n", 400),
            done(1, 500),
        ],
        "#1 long\n#1 0.200 a\n#1 ...\n\n#2 short\n#2 0.100 x\n#2 DONE 0.3s\n\n#1 long\n#1 0.400 b\n#1 DONE 0.5s\n\n",
    );
}

#[test]
fn plain_shows_slow_downloads_now_and_then() {
    check_plain(
        &[
            started(1, "FROM x", 0),
            status(1, "sha256:a", (0, 9_000_000), false, 0),
            status(1, "sha256:a", (1_000_000, 9_000_000), false, 4000),
            status(1, "sha256:a", (2_000_000, 9_000_000), false, 6000),
            status(1, "sha256:a", (9_000_000, 9_000_000), true, 7000),
            status(1, "naming", (1, 1), true, 7000),
            done(1, 7000),
        ],
        "#1 FROM x\n#1 sha256:a 2.00MB / 9.00MB\n#1 sha256:a 9.00MB done\n#1 naming done\n#1 DONE 7.0s\n\n",
    );
}

#[test]
fn plain_output_is_cleaned() {
    check_plain(
        &[
            started(1, "RUN \x1b[31mx", 0),
            log(1, b"10%\r20%\r", 100),
            log(1, b"30%\n\xff\x1b[2Jx\x1b[32mok\n", 100),
            done(1, 100),
        ],
        "#1 RUN x\n#1 0.100 30%\n#1 0.100 \u{fffd}x\x1b[32mok\x1b[0m\n#1 DONE 0.1s\n\n",
    );
}

#[test]
fn plain_keeps_nothing_of_a_flood() {
    let mut plain = Plain::new(std::io::sink(), false);
    plain.event(&started(1, "a", 0).0, at(0));
    plain.event(&started(2, "b", 0).0, at(0));
    for i in 0..20_000 {
        plain.event(&log(2, b"line\nline\n", 0).0, at(0));
        plain.event(&log(1, b"no newline", 0).0, at(0));
        if i % 1000 == 0 {
            plain.print(at(0));
        }
    }
    plain.finish();
    assert!(!plain.is_waiting());
}

/// A terminal that knows what the view uses: cursor up, erase, newline.
struct Screen {
    columns: usize,
    lines: Vec<String>,
    row: usize,
}

impl Screen {
    fn show(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let mut chars = text.chars().peekable();
        let mut column = 0;
        while let Some(c) = chars.next() {
            match c {
                '\x1b' => {
                    assert_eq!(chars.next(), Some('['));
                    let mut number = String::new();
                    let end = loop {
                        match chars.next() {
                            Some(c) if c.is_ascii_digit() || c == '?' || c == ';' => number.push(c),
                            Some(c) => break c,
                            None => panic!("a sequence without an end"),
                        }
                    };
                    match end {
                        'F' => {
                            self.row -= number.parse::<usize>().unwrap();
                            column = 0;
                        }
                        'K' => self.line().clear(),
                        'J' => self.lines.truncate(self.row),
                        'm' | 'h' | 'l' => {}
                        other => panic!("unknown sequence {other}"),
                    }
                }
                '\n' => {
                    self.row += 1;
                    column = 0;
                }
                c => {
                    assert!(column < self.columns, "a line is wider than the terminal: {text}");
                    self.line().push(c);
                    column += 1;
                }
            }
        }
    }

    fn line(&mut self) -> &mut String {
        while self.lines.len() <= self.row {
            self.lines.push(String::new());
        }
        &mut self.lines[self.row]
    }
}

#[track_caller]
fn check_tty(script: &[(BuildEvent, i64)], size: (usize, usize), last: bool, want: &str) {
    let mut out = Vec::new();
    let mut tty = Tty::new(&mut out, false, 3);
    let mut ms = 0;
    for (event, now) in script {
        ms = *now;
        tty.event(event, at(ms));
        tty.draw(at(ms), size, false);
    }
    tty.draw(at(ms), size, last);
    let mut screen = Screen { columns: size.0, lines: vec![], row: 0 };
    screen.show(&out);
    let lines: Vec<&str> = screen.lines.iter().map(|line| line.trim_end()).collect();
    assert_eq!(lines.join("\n"), want);
}

#[test]
fn tty_shows_what_runs_and_its_last_lines() {
    let script = [
        started(1, "[internal] load build definition", 0),
        done(1, 10),
        cached(2, "[a 1/3] COPY . /src", 20),
        started(3, "[a 2/3] RUN a very long command that does not fit", 30),
        log(3, b"1\n2\n3\n4\n50%\r60%", 40),
        started(4, "FROM x", 50),
        status(4, "sha256:abc", (1_500_000, 3_000_000), false, 60),
        status(4, "sha256:def", (3_000_000, 3_000_000), true, 1230),
    ];
    check_tty(
        &script,
        (40, 24),
        false,
        "[+] Building 1.2s (2/4)
 => [internal] load build definitio 0.0s
 => CACHED [a 1/3] COPY . /src      0.0s
 => [a 2/3] RUN a very long command 1.2s
 => => # 3
 => => # 4
 => => # 60%
 => FROM x                          1.1s
 => => sha256:abc 1.50MB / 3.00MB",
    );
    check_tty(
        &script,
        (40, 5),
        false,
        "[+] Building 1.2s (2/4)
 => CACHED [a 1/3] COPY . /src      0.0s
 => [a 2/3] RUN a very long command 1.2s
 => FROM x                          1.1s",
    );
}

#[test]
fn tty_ends_with_everything() {
    let script = [
        started(1, "one", 0),
        log(1, b"x\n", 1),
        started(2, "two", 5),
        started(3, "three", 5),
        failed(2, "exit code: 1", 105),
        (BuildEvent::Cancelled { vertex: VertexId(3), at: at(205) }, 205),
        done(1, 300),
        (BuildEvent::Warning { vertex: None, message: "beware".to_owned() }, 300),
    ];
    check_tty(
        &script,
        (30, 4),
        true,
        "[+] Building 0.3s (3/3) FINISH
 => one                   0.3s
 => ERROR two             0.1s
 => CANCELED three        0.2s
 WARNING: beware",
    );
}

#[test]
fn tty_finds_its_beginning_after_the_terminal_became_narrower() {
    let mut out = Vec::new();
    let mut tty = Tty::new(&mut out, false, 3);
    tty.event(&started(1, "one", 0).0, at(0));
    tty.draw(at(0), (60, 20), false);
    tty.draw(at(0), (30, 20), false);
    // The step's line of 60 columns is two of 30 now, and the headline fits.
    assert!(String::from_utf8_lossy(&out).contains("\x1b[3F"));
}

#[test]
fn rawjson_is_buildkits_status() {
    let mut out = Vec::new();
    let mut json = RawJson::new(&mut out);
    for (event, ms) in [
        started(1, "RUN x", 0),
        log(1, b"hi\n", 1),
        status(1, "id", (1, 2), true, 2),
        failed(1, "exit code: 1", 3),
    ] {
        json.event(&event, at(ms));
    }
    json.flush();
    drop(json);
    let text = String::from_utf8(out).unwrap();
    let digest = "sha256:".to_owned();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let vertex = &lines[0]["vertexes"][0];
    assert!(vertex["digest"].as_str().unwrap().starts_with(&digest));
    assert_eq!(
        (vertex["name"].as_str(), vertex["started"].as_str()),
        (Some("RUN x"), Some("1970-01-01T00:00:00.000000000Z"))
    );
    assert_eq!(lines[1]["logs"][0]["data"], "aGkK");
    assert_eq!(lines[1]["logs"][0]["vertex"], vertex["digest"]);
    assert_eq!(lines[2]["statuses"][0]["total"], 2);
    assert_eq!(lines[3]["vertexes"][0]["error"], "exit code: 1");
    assert_eq!(lines[3]["vertexes"][0]["name"], "RUN x");
}
