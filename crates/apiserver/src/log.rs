//! What a container has written, as far back as is kept.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;

/// How many bytes of a container are kept.
const KEPT: usize = 1 << 20;

/// Something that was written at once.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    pub(crate) time: Timestamp,
    /// Whether as an error.
    pub(crate) is_error: bool,
    pub(crate) bytes: Bytes,
}

/// The output of one run of a command.
#[derive(Debug)]
pub(crate) struct Log {
    kept: Mutex<Kept>,
    /// Changes with each chunk, and at the end.
    grown: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Kept {
    chunks: VecDeque<Chunk>,
    /// The number of the first chunk that is kept.
    first: u64,
    size: usize,
    ended: bool,
}

impl Log {
    pub(crate) fn new() -> Log {
        Log { kept: Mutex::default(), grown: watch::Sender::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self, bytes: Bytes, is_error: bool) {
        let mut kept = self.lock();
        kept.size += bytes.len();
        kept.chunks.push_back(Chunk { time: Timestamp::now(), is_error, bytes });
        while kept.size > KEPT {
            let Some(oldest) = kept.chunks.pop_front() else { break };
            kept.size -= oldest.bytes.len();
            kept.first += 1;
        }
        drop(kept);
        self.grown.send_replace(());
    }

    /// Nothing more will come.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.grown.send_replace(());
    }

    /// What is kept from a chunk on, the number of the next one, and whether none will come.
    pub(crate) fn from(&self, number: u64) -> (Vec<Chunk>, u64, bool) {
        let kept = self.lock();
        let skip = number.saturating_sub(kept.first) as usize;
        let chunks = kept.chunks.iter().skip(skip).cloned().collect();
        (chunks, kept.first + kept.chunks.len() as u64, kept.ended)
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.grown.subscribe()
    }
}

/// Which part of a log is asked for (`PodLogOptions`).
#[derive(Debug, Clone, Default)]
pub(crate) struct Part {
    pub(crate) tail: Option<usize>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) timestamps: bool,
}

/// Writes chunks as lines, with the time before each if that is asked for.
#[derive(Debug)]
pub(crate) struct Lines {
    part: Part,
    at_start: bool,
    /// Whether the line that is being written is shown.
    shown: bool,
}

impl Lines {
    pub(crate) fn new(part: Part) -> Lines {
        Lines { part, at_start: true, shown: true }
    }

    /// These chunks, the first ones of a log, without the lines before the tail.
    pub(crate) fn first(&mut self, chunks: &[Chunk]) -> Vec<u8> {
        let tail = self.part.tail;
        let text = self.next(chunks);
        let Some(tail) = tail else { return text };
        let body = text.strip_suffix(b"\n").unwrap_or(&text);
        let mut ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
        match tail.checked_sub(1) {
            None => Vec::new(),
            Some(before) => match ends.nth(before) {
                Some((end, _)) => text[end + 1..].to_vec(),
                None => text,
            },
        }
    }

    /// These chunks, which follow.
    pub(crate) fn next(&mut self, chunks: &[Chunk]) -> Vec<u8> {
        let mut text = Vec::new();
        for chunk in chunks {
            for piece in chunk.bytes.split_inclusive(|byte| *byte == b'\n') {
                if self.at_start {
                    self.shown = self.part.since.is_none_or(|since| chunk.time >= since);
                    if self.part.timestamps && self.shown {
                        text.extend_from_slice(format!("{:.9} ", chunk.time).as_bytes());
                    }
                }
                if self.shown {
                    text.extend_from_slice(piece);
                }
                self.at_start = piece.ends_with(b"\n");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(of: &[&'static str]) -> Log {
        let log = Log::new();
        for text in of {
            log.write(Bytes::from_static(text.as_bytes()), false);
        }
        log
    }

    fn tail(of: &[&'static str], tail: usize) -> String {
        let mut lines = Lines::new(Part { tail: Some(tail), ..Part::default() });
        String::from_utf8(lines.first(&log(of).from(0).0)).expect("text")
    }

    #[test]
    fn a_tail_counts_lines_wherever_they_were_cut() {
        let written = ["one\ntw", "o\nthree", "\nfour"];
        assert_eq!(tail(&written, 0), "");
        assert_eq!(tail(&written, 1), "four");
        assert_eq!(tail(&written, 2), "three\nfour");
        assert_eq!(tail(&written, 9), "one\ntwo\nthree\nfour");
        assert_eq!(tail(&["one\n", "two\n"], 1), "two\n");
    }

    #[test]
    fn what_is_too_old_is_given_up_and_counted_all_the_same() {
        let log = Log::new();
        for _ in 0..3 {
            log.write(vec![b'x'; KEPT / 2].into(), false);
        }
        let (chunks, next, ended) = log.from(0);
        assert_eq!((chunks.len(), next, ended), (2, 3, false));
        assert_eq!(log.from(3).0.len(), 0);
        log.write(Bytes::from_static(b"y"), false);
        assert_eq!(&*log.from(3).0[0].bytes, b"y");
    }

    #[test]
    fn each_line_has_its_time() {
        let mut lines = Lines::new(Part { timestamps: true, ..Part::default() });
        let text = lines.next(&log(&["one\ntw", "o\n"]).from(0).0);
        let text = String::from_utf8(text).expect("text");
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!((words.len(), words[1], words[3]), (4, "one", "two"));
        assert!(words[0].ends_with('Z') && words[0].contains('.'), "{text}");
    }
}
