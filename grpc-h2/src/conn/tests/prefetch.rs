//! Prefetching, and calls that bypass the fast path.

use super::*;
use crate::{Bypass, NoObserver};

/// Answers as [`Echo`] does, and records what it is called with.
#[derive(Clone, Default)]
struct Recorder(Rc<RefCell<Vec<String>>>);

impl FastPath for Recorder {
    type Pass = ();

    fn begin_batch(&mut self, _: Instant) {}

    fn prefetch<'a>(&mut self, bodies: impl Iterator<Item = &'a [u8]>) {
        let bodies: Vec<_> = bodies.map(String::from_utf8_lossy).collect();
        self.0.borrow_mut().push(format!("prefetch {}", bodies.join(" ")));
        assert_ne!(bodies.last().map(|body| &**body), Some("panic"));
    }

    fn is_known(&mut self, head: &RequestHead) -> bool {
        Echo.is_known(head)
    }

    fn admit(&mut self, head: &RequestHead) -> Option<()> {
        Echo.admit(head)
    }

    fn answer(&mut self, pass: &(), body: &[u8]) -> Option<Bytes> {
        self.0.borrow_mut().push(String::from_utf8_lossy(body).into_owned());
        Echo.answer(pass, body)
    }

    fn on_bypass(&mut self, head: &RequestHead, why: Bypass) {
        self.0.borrow_mut().push(format!("bypass {}: {why:?}", String::from_utf8_lossy(head.path())));
    }

    fn on_cancel(&mut self, (): &()) {}

    fn end_batch(&mut self) {}
}

#[test]
fn bodies_are_prefetched_in_batches_before_the_first_is_answered() {
    let (recorder, said) = (Recorder::default(), |seen: &Recorder| std::mem::take(&mut *seen.0.borrow_mut()));
    let mut conn = Conn::new(
        recorder.clone(),
        Spawned::default(),
        ReplyBudget::new(1),
        roomy(),
        SharedLimits::default(),
        NoObserver,
    );
    let mut bytes = PREFACE.to_vec();
    frame::put_settings(&mut bytes, &[]);
    bytes.extend(head(1, "/long"));
    conn.receive(&bytes, Instant::now()).unwrap();
    said(&recorder);

    let mut bytes = vec![];
    let call = |id: u32, text: &str, bytes: &mut Vec<u8>| {
        bytes.extend(head(id, "/"));
        frame::put_data(bytes, id, true, text.as_bytes());
    };
    for nth in 0..20 {
        call(3 + 2 * nth, &nth.to_string(), &mut bytes);
        // Data of calls on the slow path, and data that does not end its body, is not prefetched.
        frame::put_data(&mut bytes, 1, nth == 19, b"other");
    }
    bytes.extend(head(43, "/"));
    frame::put_data(&mut bytes, 43, false, b"piece");
    // Incomplete.
    let whole = bytes.len();
    call(45, "later", &mut bytes);
    bytes.pop();
    let done = conn.receive(&bytes, Instant::now()).unwrap();
    assert!(whole < done && done < bytes.len());
    let numbers = |range: std::ops::Range<u32>| range.map(|number| number.to_string()).collect::<Vec<_>>();
    let expected = [
        vec![format!("prefetch {}", numbers(0..16).join(" "))],
        numbers(0..16),
        vec![format!("prefetch {}", numbers(16..20).join(" "))],
        numbers(16..20),
    ];
    assert_eq!(said(&recorder), expected.concat());

    // A panic while prefetching does not keep the calls from being answered.
    bytes.drain(..done);
    bytes.extend(b"r");
    call(47, "panic", &mut bytes);
    call(49, "last", &mut bytes);
    conn.receive(&bytes, Instant::now()).unwrap();
    assert_eq!(said(&recorder), ["prefetch later panic last", "later", "panic", "last"]);
}

#[test]
fn calls_that_bypass_the_fast_path_are_reported_with_the_reason() {
    let (recorder, reply_budget) = (Recorder::default(), ReplyBudget::new(1_000));
    let limits = SharedLimits::new(Limits { buffered_bytes_max: 50_000, ..LIMITS }).unwrap();
    let mut conn = Conn::new(recorder.clone(), Spawned::default(), reply_budget.clone(), roomy(), limits, NoObserver);
    let mut bytes = PREFACE.to_vec();
    frame::put_settings(&mut bytes, &[]);
    bytes.extend(head(1, "/"));
    for _ in 0..4 {
        frame::put_data(&mut bytes, 1, false, &[b'x'; 16 * 1024]);
    }
    bytes.extend(head(3, "/"));
    frame::put_data(&mut bytes, 3, false, b"piece");
    let mut rest = &*bytes;
    while !rest.is_empty() {
        rest = &rest[conn.receive(rest, Instant::now()).unwrap()..];
    }
    let told = || Vec::from_iter(recorder.0.take().into_iter().filter(|line| line.starts_with("bypass")));
    assert_eq!(told(), ["bypass /: RequestTooLong"]);
    let _full = reply_budget.add(vec![0; 1_000].into(), 0);
    bytes.clear();
    frame::put_data(&mut bytes, 3, true, b"last");
    bytes.extend(head(5, "/"));
    conn.receive(&bytes, Instant::now()).unwrap();
    assert_eq!(told(), ["bypass /: RepliesPending", "bypass /: RepliesPending"]);
}
