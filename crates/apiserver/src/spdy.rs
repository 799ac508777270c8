//! Frames of SPDY/3.1, as far as `kubectl port-forward` has need of them: it sends them through a
//! WebSocket.

use std::collections::HashMap;
use std::sync::LazyLock;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

/// The most bytes of a frame.
const LONGEST: usize = 1 << 20;
/// The most bytes of the headers of a stream.
const MOST_HEADERS: usize = 64 << 10;
/// How far compressed headers refer back; a power of two.
const WINDOW: usize = 32 << 10;
/// A header of zlib, and the checksum of the dictionary.
const ZLIB_HEADER: usize = 6;

/// Words that compressed headers refer to from the beginning (SPDY/3, 2.6.10.1): each after its length,
/// then text.
const WORDS: &str = "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|\
accept-language|accept-ranges|age|allow|authorization|cache-control|connection|content-base|\
content-encoding|content-language|content-length|content-location|content-md5|content-range|\
content-type|date|etag|expect|expires|from|host|if-match|if-modified-since|if-none-match|if-range|\
if-unmodified-since|last-modified|location|max-forwards|pragma|proxy-authenticate|\
proxy-authorization|range|referer|retry-after|server|te|trailer|transfer-encoding|upgrade|\
user-agent|vary|via|warning|www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|public|\
set-cookie|keep-alive|origin";
const TEXT: &str = "1001012012022052063003023033043053063074024054064074084094104114124134144154\
16417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request\
401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service \
UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, \
Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,\
text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,\
utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut all = Vec::new();
    for word in WORDS.split('|') {
        all.put_u32(word.len() as u32);
        all.put_slice(word.as_bytes());
    }
    all.put_slice(TEXT.as_bytes());
    all
});

/// What a client sends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A new stream; `fin` if nothing will be sent on it.
    Open {
        stream: u32,
        headers: HashMap<String, String>,
        fin: bool,
    },
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
    Reset {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    /// The client wants no more streams.
    Leave,
    /// Of no use here.
    Other,
}

/// Bytes that cannot be read as frames.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Reads frames from bytes, however they are cut.
pub(crate) struct Reader {
    bytes: BytesMut,
    inflate: Box<DecompressorOxide>,
    window: Box<[u8]>,
    at: usize,
    /// Whether the compressed headers have begun.
    begun: bool,
}

impl Reader {
    pub(crate) fn new() -> Reader {
        let mut window = vec![0; WINDOW].into_boxed_slice();
        window[..DICTIONARY.len()].copy_from_slice(&DICTIONARY);
        Reader {
            bytes: BytesMut::new(),
            inflate: Box::default(),
            window,
            at: DICTIONARY.len(),
            begun: false,
        }
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame; `None` if it has not all come yet.
    pub(crate) fn frame(&mut self) -> Result<Option<Frame>, Malformed> {
        let Some([a, b, c, d, flags, e, f, g]) = self.bytes.first_chunk().copied() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([0, e, f, g]) as usize;
        if length > LONGEST {
            return Err(Malformed);
        }
        if self.bytes.len() < 8 + length {
            return Ok(None);
        }
        self.bytes.advance(8);
        let mut body = self.bytes.split_to(length).freeze();
        let fin = flags & 1 == 1;
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            return Ok(Some(Frame::Data { stream, bytes: body, fin }));
        }
        let mut number = || body.try_get_u32().map_err(|_| Malformed);
        Ok(Some(match u16::from_be_bytes([c, d]) {
            1 => {
                let (stream, _) = (number()?, number()?);
                body.try_get_u16().map_err(|_| Malformed)?;
                Frame::Open { stream, headers: self.headers(&body)?, fin }
            }
            3 => Frame::Reset { stream: number()? },
            6 => Frame::Ping { id: number()? },
            7 => Frame::Leave,
            // Nothing in them matters, but what follows refers to them.
            2 | 8 => {
                number()?;
                self.headers(&body)?;
                Frame::Other
            }
            _ => Frame::Other,
        }))
    }

    fn headers(&mut self, block: &[u8]) -> Result<HashMap<String, String>, Malformed> {
        let mut block = match self.begun {
            true => block,
            false => block.get(ZLIB_HEADER..).ok_or(Malformed)?,
        };
        self.begun = true;
        let mut text = Vec::new();
        while !block.is_empty() {
            let flags = TINFL_FLAG_HAS_MORE_INPUT;
            let (status, read, written) =
                decompress(&mut self.inflate, block, &mut self.window, self.at, flags);
            text.extend_from_slice(&self.window[self.at..self.at + written]);
            self.at = (self.at + written) % WINDOW;
            block = &block[read..];
            let goes_on =
                matches!(status, TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput);
            if !goes_on || (read == 0 && written == 0) || text.len() > MOST_HEADERS {
                return Err(Malformed);
            }
        }
        let mut text = &text[..];
        let mut headers = HashMap::new();
        for _ in 0..text.try_get_u32().map_err(|_| Malformed)? {
            let (name, value) = (string(&mut text)?, string(&mut text)?);
            headers.insert(name, value);
        }
        Ok(headers)
    }
}

fn string(from: &mut &[u8]) -> Result<String, Malformed> {
    let length = from.try_get_u32().map_err(|_| Malformed)? as usize;
    let (text, rest) = from.split_at_checked(length).ok_or(Malformed)?;
    *from = rest;
    String::from_utf8(text.to_vec()).map_err(|_| Malformed)
}

/// Writes frames.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    /// Whether the compressed headers have begun.
    begun: bool,
}

impl Writer {
    /// Accepts a stream, without headers.
    pub(crate) fn accept(&mut self, stream: u32) -> Bytes {
        // A stored block, which is four zeros: no headers. Then an empty one: there is no more for now.
        let block = [0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        let header: &[u8] = if self.begun { &[] } else { &[0x78, 0x01] };
        self.begun = true;
        let mut body = BytesMut::new();
        body.put_u32(stream);
        body.put_slice(header);
        body.put_slice(&block);
        control(2, &body)
    }

    /// Bytes of a stream; the last ones with `fin`.
    pub(crate) fn data(stream: u32, bytes: &[u8], fin: bool) -> Bytes {
        let mut frame = BytesMut::with_capacity(8 + bytes.len());
        frame.put_u32(stream);
        frame.put_u32((u32::from(fin) << 24) | bytes.len() as u32);
        frame.put_slice(bytes);
        frame.freeze()
    }

    pub(crate) fn pong(id: u32) -> Bytes {
        control(6, &id.to_be_bytes())
    }
}

fn control(kind: u16, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(8 + body.len());
    frame.put_u16(0x8003);
    frame.put_u16(kind);
    frame.put_u32(body.len() as u32);
    frame.put_slice(body);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adler-32.
    fn checksum(bytes: &[u8]) -> u32 {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in bytes {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        (b << 16) | a
    }

    #[test]
    fn the_dictionary_is_that_of_the_protocol() {
        assert_eq!((DICTIONARY.len(), checksum(&DICTIONARY)), (1423, 0xe3c6_a7c2));
    }

    /// A header block with this in it, as a stored block of zlib.
    fn stored(headers: &[(&str, &str)], first: bool) -> Vec<u8> {
        let mut text = Vec::new();
        text.put_u32(headers.len() as u32);
        for part in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.put_u32(part.len() as u32);
            text.put_slice(part.as_bytes());
        }
        let mut block = if first { vec![0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2] } else { Vec::new() };
        block.put_u8(0);
        block.put_u16_le(text.len() as u16);
        block.put_u16_le(!(text.len() as u16));
        block.put_slice(&text);
        block
    }

    fn open(stream: u32, headers: &[(&str, &str)], first: bool) -> Bytes {
        let mut body = Vec::new();
        body.put_u32(stream);
        body.put_u32(0);
        body.put_u16(0);
        body.put_slice(&stored(headers, first));
        control(1, &body)
    }

    #[test]
    fn frames_are_read_however_they_are_cut() {
        let all = [
            open(1, &[("streamtype", "error"), ("port", "80")], true),
            open(3, &[("streamtype", "data")], false),
            Writer::data(3, b"hello", false),
            Writer::data(3, b"", true),
            Writer::pong(7),
            control(3, &[0, 0, 0, 3, 0, 0, 0, 5]),
        ]
        .concat();
        let map = |headers: &[(&str, &str)]| {
            headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
        };
        for size in [1, 3, 10, all.len()] {
            let mut reader = Reader::new();
            let mut frames = Vec::new();
            for piece in all.chunks(size) {
                reader.put(piece);
                while let Some(frame) = reader.frame().expect("well-formed") {
                    frames.push(frame);
                }
            }
            let first = map(&[("streamtype", "error"), ("port", "80")]);
            let expected = [
                Frame::Open { stream: 1, headers: first, fin: false },
                Frame::Open { stream: 3, headers: map(&[("streamtype", "data")]), fin: false },
                Frame::Data { stream: 3, bytes: Bytes::from_static(b"hello"), fin: false },
                Frame::Data { stream: 3, bytes: Bytes::new(), fin: true },
                Frame::Ping { id: 7 },
                Frame::Reset { stream: 3 },
            ];
            assert_eq!(frames, expected);
        }
    }

    #[test]
    fn headers_are_read_as_kubectl_compresses_them() {
        let blocks = [
            "78f9e3c6a7c202253a703a2b294a4dcc851625aca9a0808614cb45a024cc6a68616069c9c0c0c0590489\
             c74c50fa663400000000ffff",
            "c2aa1b54102512a119000000ffff",
        ];
        let mut reader = Reader::new();
        for (block, kind) in blocks.iter().zip(["error", "data"]) {
            let pairs = block.as_bytes().chunks(2);
            let bytes = pairs.map(|p| std::str::from_utf8(p).expect("ASCII"));
            let bytes = bytes.map(|p| u8::from_str_radix(p, 16).expect("hexadecimal"));
            let body: Vec<u8> = std::iter::repeat_n(0, 10).chain(bytes).collect();
            reader.put(&control(1, &body));
            let Ok(Some(Frame::Open { headers, .. })) = reader.frame() else { panic!("{block}") };
            assert_eq!((&*headers["streamtype"], &*headers["port"]), (kind, "18099"));
            assert_eq!(headers["requestid"], "0");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bad in [
            control(1, &[0; 4]),
            control(1, &[0; 10]),
            control(1, &[0xff; 40]),
            control(3, &[]),
            Bytes::from_static(&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff]),
        ] {
            let mut reader = Reader::new();
            reader.put(&bad);
            assert_eq!(reader.frame(), Err(Malformed), "{bad:?}");
        }
    }
}
