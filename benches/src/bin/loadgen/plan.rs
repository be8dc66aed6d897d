//! What is asked: secrets, the frames that ask about them, and what the replies must begin with.

use std::path::Path;

use keyward::util::system::SystemEntropy;
use keyward_bench::fixture::Failure;
use keyward_bench::stats::Spread;
use keyward_core::id::{Environment, SecretPrefix};
use keyward_core::secret::IssuedSecret;

use crate::frames::{self, DATA, END_HEADERS, END_STREAM, HEADERS, push_field, push_frame};

const VERIFY: &str = "/keyward.v1.KeyVerify/Verify";
const STREAM_VERIFY: &str = "/keyward.v1.KeyVerify/StreamVerify";
const ECHO: &str = "/bench.v1.Echo/Echo";
const ECHO_STREAM: &str = "/bench.v1.Echo/Stream";

/// Different secrets that are refused, of each kind.
const REFUSED: usize = 1_024;

/// `decision` and `reason` of a VerifyResponse: ALLOW and OK, DENY and UNKNOWN, DENY and MALFORMED.
const ALLOWED: &[u8] = b"\x08\x01\x10\x01";
const UNKNOWN: &[u8] = b"\x08\x02\x10\x03";
const MALFORMED: &[u8] = b"\x08\x02\x10\x02";

/// Which call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Verify.
    Verify,
    /// StreamVerify.
    Stream,
    /// The unary echo.
    Echo,
    /// The echo's stream.
    EchoStream,
}

impl What {
    pub(crate) fn parse(name: &str) -> Result<Self, Failure> {
        match name {
            "verify" => Ok(Self::Verify),
            "stream" => Ok(Self::Stream),
            "echo" => Ok(Self::Echo),
            "echo-stream" => Ok(Self::EchoStream),
            _ => Err(format!("there is no call {name}").into()),
        }
    }

    /// Whether requests follow each other on one stream.
    pub(crate) fn streams(self) -> bool {
        matches!(self, Self::Stream | Self::EchoStream)
    }

    fn path(self) -> &'static str {
        match self {
            Self::Verify => VERIFY,
            Self::Stream => STREAM_VERIFY,
            Self::Echo => ECHO,
            Self::EchoStream => ECHO_STREAM,
        }
    }
}

/// Something to ask about.
pub(crate) struct Item {
    /// The request, with its prefix.
    request: Vec<u8>,
    /// What the message of its reply begins with.
    expected: Vec<u8>,
    /// The same, where it is learned first.
    class: &'static [u8],
}

/// The secrets, by kind, and how often each kind is asked about.
pub(crate) struct Plan {
    pub(crate) what: What,
    caller: String,
    items: Vec<Item>,
    /// Where the unknown begin, and the garbage.
    unknown_at: usize,
    garbage_at: usize,
    unknown_percent: u64,
    garbage_percent: u64,
}

impl Plan {
    /// A plan to ask about so many of the secrets of a file, whose first is that of the caller.
    pub(crate) fn of_file(what: What, path: &Path, keys: usize, percents: [u64; 2]) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path)?;
        let mut lines = text.lines().map(|line| line.split_once(' ').ok_or("a line is no secret with a scope"));
        let (caller, _) = lines.next().ok_or("there is no caller")??;
        let known = lines.collect::<Result<Vec<_>, _>>()?;
        let keys = keys.min(known.len());
        // Where there is one, it is that in the middle, as in what h2load sends.
        let from = if keys == 1 { known.len() / 2 } else { 0 };
        let known = known.get(from..from + keys).filter(|known| !known.is_empty()).ok_or("there are no keys")?;
        let mut items: Vec<_> = known.iter().map(|(secret, scope)| Item::new(what, secret, scope, ALLOWED)).collect();
        let unknown_at = items.len();
        let scope = known[0].1;
        // None that nobody will ask about: each is learned, and the server counts it.
        let [unknown, garbage] = percents.map(|percent| if percent > 0 { REFUSED } else { 0 });
        for _ in 0..unknown {
            let secret = IssuedSecret::generate(&SecretPrefix::kw(), &Environment::live(), &SystemEntropy)?.reveal();
            items.push(Item::new(what, &secret, scope, UNKNOWN));
        }
        let garbage_at = items.len();
        for nth in 0..garbage {
            let garbage = format!("kw_live_{nth:x>width$}", width = known[0].0.len() - "kw_live_".len());
            items.push(Item::new(what, &garbage, scope, MALFORMED));
        }
        let [unknown_percent, garbage_percent] = percents;
        let caller = caller.to_owned();
        Ok(Self { what, caller, items, unknown_at, garbage_at, unknown_percent, garbage_percent })
    }

    /// A plan to send requests of so many bytes to the echo.
    pub(crate) fn of_echo(what: What, bytes: usize) -> Result<Self, Failure> {
        // One field, with its tag and its length in two bytes, or in three.
        let content = bytes.checked_sub(if bytes < 130 { 2 } else { 3 }).ok_or("no message is that short")?;
        let mut message = vec![];
        push_field(&mut message, 1, &vec![b'x'; content]);
        let item = Item { request: frames::prefixed(&message), expected: b"\x0a".to_vec(), class: b"\x0a" };
        let caller = "none".to_owned();
        Ok(Self {
            what,
            caller,
            items: vec![item],
            unknown_at: 1,
            garbage_at: 1,
            unknown_percent: 0,
            garbage_percent: 0,
        })
    }

    /// How many different requests there are.
    pub(crate) fn items(&self) -> usize {
        self.items.len()
    }

    /// How long a request is, with its prefix.
    pub(crate) fn request_bytes(&self, item: usize) -> usize {
        self.items[item].request.len()
    }

    /// The next to ask about: no order that a processor could learn, and the same in each run.
    pub(crate) fn choose(&self, random: &mut Spread) -> usize {
        let word = random.next().unwrap_or_default();
        let (percent, rest) = (word % 100, (word >> 32) as usize);
        if percent < self.garbage_percent {
            self.garbage_at + rest % (self.items.len() - self.garbage_at)
        } else if percent < self.garbage_percent + self.unknown_percent {
            self.unknown_at + rest % (self.garbage_at - self.unknown_at)
        } else {
            rest % self.unknown_at
        }
    }

    /// The frame that begins a call.
    pub(crate) fn head(&self) -> Vec<u8> {
        let mut out = vec![];
        push_frame(&mut out, HEADERS, END_HEADERS, 0, &frames::call_block(self.what.path(), &self.caller));
        out
    }

    /// The frame of each request.
    pub(crate) fn requests(&self) -> Vec<Vec<u8>> {
        let flags = if self.what.streams() { 0 } else { END_STREAM };
        let frame = |item: &Item| {
            let mut out = vec![];
            push_frame(&mut out, DATA, flags, 0, &item.request);
            out
        };
        self.items.iter().map(frame).collect()
    }

    /// Keeps what a reply begins with, if it is of the right kind.
    pub(crate) fn learn(&mut self, item: usize, message: &[u8]) -> Result<(), Failure> {
        let verdict = self.verdict(message).ok_or("a reply is no verdict")?;
        let item = &mut self.items[item];
        if !verdict.starts_with(item.class) {
            return Err(
                format!("the verdict is another one: {:?} instead of {:?}", verdict.get(..4), item.class).into()
            );
        }
        item.expected = frames::before_revision(verdict).ok_or("a reply is no verdict")?.to_vec();
        Ok(())
    }

    /// Whether this is the reply to an item.
    pub(crate) fn answers(&self, item: usize, message: &[u8]) -> bool {
        self.verdict(message).is_some_and(|verdict| verdict.starts_with(&self.items[item].expected))
    }

    /// The VerifyResponse in a reply.
    fn verdict<'a>(&self, message: &'a [u8]) -> Option<&'a [u8]> {
        match self.what {
            What::Stream => {
                let (length, verdict) = frames::varint(message.strip_prefix(b"\x0a")?)?;
                verdict.get(..length)
            }
            _ => Some(message),
        }
    }
}

impl Item {
    fn new(what: What, secret: &str, scope: &str, class: &'static [u8]) -> Self {
        let mut request = vec![];
        push_field(&mut request, 1, secret.as_bytes());
        push_field(&mut request, 3, scope.as_bytes());
        if what == What::Stream {
            let verify = std::mem::take(&mut request);
            push_field(&mut request, 1, &verify);
        }
        Self { request: frames::prefixed(&request), expected: class.to_vec(), class }
    }
}
