use proptest::prelude::*;

use super::*;
use crate::observe::log::Ring;

const ALPHA: Console = Console(1);
const BETA: Console = Console(2);

/// A UART whose FIFO has room for `room` bytes.
struct Wire {
    sent: Vec<u8>,
    room: usize,
    is_notified: bool,
}

impl Uart for Wire {
    fn try_write(&mut self, byte: u8) -> bool {
        if self.room == 0 {
            return false;
        }
        self.room -= 1;
        self.sent.push(byte);
        true
    }

    fn notify_room(&mut self, is_wanted: bool) {
        self.is_notified = is_wanted;
    }
}

fn ring(size: usize) -> &'static mut [u8] {
    vec![0; size].leak()
}

/// Creates the monitor's console, alpha's and beta's, and a UART that takes everything.
fn mux() -> Mux<'static, Wire> {
    let wire = Wire { sent: Vec::new(), room: usize::MAX, is_notified: false };
    let storage = Storage { out: ring(QUEUE_SIZE), messages: ring(QUEUE_SIZE) };
    let mut mux = Mux::new(wire, storage, ring(RING_SIZE), ring(RING_SIZE));
    mux.add(ALPHA, "alpha", ring(RING_SIZE), ring(RING_SIZE));
    mux.add(BETA, "beta", ring(RING_SIZE), ring(RING_SIZE));
    mux
}

type TestMux = Mux<'static, Wire>;

fn print(mux: &mut TestMux, console: Console, text: &str) {
    for byte in text.bytes() {
        assert!(mux.transmit(console, byte), "refused");
    }
}

fn keys(mux: &mut TestMux, keys: &[u8]) -> Vec<Effect> {
    keys.iter().map(|&key| mux.input(key)).collect()
}

fn received(mux: &mut TestMux, console: Console) -> Vec<u8> {
    std::iter::from_fn(|| mux.receive(console)).collect()
}

fn screen(mux: &mut TestMux) -> String {
    String::from_utf8(std::mem::take(&mut mux.uart().sent)).unwrap()
}

#[test]
fn the_front_console_goes_straight_out() {
    let mut mux = mux();
    print(&mut mux, Console::MONITOR, "ballast> ");
    assert_eq!(screen(&mut mux), "ballast> ");
    assert!(!mux.wants_poll());
    assert_eq!(keys(&mut mux, b"x"), [Effect::Received(Console::MONITOR)]);
    assert_eq!(received(&mut mux, Console::MONITOR), b"x");
}

#[test]
fn the_prefix_switches_and_replays() {
    let mut mux = mux();
    print(&mut mux, ALPHA, "Booting Linux\r\n");
    print(&mut mux, Console::MONITOR, "> ");
    assert_eq!(screen(&mut mux), "> ");
    assert_eq!(keys(&mut mux, b"\x1d1"), [Effect::None, Effect::Front(ALPHA)]);
    assert_eq!(screen(&mut mux), "\r\n--- alpha (Ctrl-] 1): 15 bytes kept ---\r\nBooting Linux\r\n");
    print(&mut mux, ALPHA, "live\r\n");
    assert_eq!(screen(&mut mux), "live\r\n");
    keys(&mut mux, b"\x1dn");
    assert_eq!(screen(&mut mux), "--- beta (Ctrl-] 2) ---\r\n");
    keys(&mut mux, b"\x1dn");
    assert_eq!(screen(&mut mux), "--- monitor (Ctrl-] m) ---\r\n");
    assert_eq!(received(&mut mux, Console::MONITOR), [REDRAW]);
    assert_eq!(mux.front, Console::MONITOR);
}

#[test]
fn the_prefix_itself_and_every_other_byte_can_be_sent() {
    let mut mux = mux();
    mux.set_front(ALPHA);
    for byte in 0..=255 {
        if byte == PREFIX {
            mux.input(PREFIX);
        }
        mux.input(byte);
    }
    assert_eq!(received(&mut mux, ALPHA), (0..=255).collect::<Vec<u8>>());
    assert_eq!(keys(&mut mux, b"\x1db"), [Effect::None, Effect::Break(0)]);
}

#[test]
fn the_prefix_works_when_nobody_reads() {
    let mut mux = mux();
    mux.set_front(ALPHA);
    for _ in 0..20_000 {
        mux.input(b'x');
    }
    assert_eq!(mux.status(ALPHA).unwrap().input_lost_count, 20_000 - 16_384);
    keys(&mut mux, b"\x1dm");
    assert_eq!(mux.front, Console::MONITOR);
}

#[test]
fn a_paste_of_10_kib_is_kept_whole() {
    let mut mux = mux();
    mux.set_front(BETA);
    let text: Vec<u8> = (0..10_240).map(|n| b'a' + (n % 26) as u8).collect();
    keys(&mut mux, &text);
    assert_eq!(received(&mut mux, BETA), text);
}

#[test]
fn old_output_is_lost_first_and_counted() {
    let mut mux = mux();
    for n in 0..2000 {
        print(&mut mux, ALPHA, &format!("line {n:04}\r\n"));
    }
    let status = mux.status(ALPHA).unwrap();
    assert_eq!((status.kept, status.lost_count), (16_384, 22_000 - 16_384));
    mux.set_front(ALPHA);
    while mux.uart().is_notified {
        mux.pump();
    }
    let screen = screen(&mut mux);
    let mut lines = screen.lines();
    assert_eq!(lines.next().unwrap(), "--- alpha (Ctrl-] 1): 16384 bytes kept, 5616 older bytes lost ---");
    assert_eq!(lines.next().unwrap(), "line 0511", "the cut line is left out");
    assert_eq!(lines.next_back().unwrap(), "line 1999");
    mux.set_front(BETA);
    mux.set_front(ALPHA);
    assert!(!screen.is_empty() && mux.status(ALPHA).unwrap().kept == 0);
}

#[test]
fn a_limit_holds() {
    let mut mux = mux();
    print(&mut mux, ALPHA, &"x".repeat(1000));
    mux.set_limit(ALPHA, 300);
    assert_eq!(mux.status(ALPHA).unwrap().kept, 300);
    print(&mut mux, ALPHA, "y");
    assert_eq!(mux.status(ALPHA).unwrap().kept, 300);
    assert_eq!(mux.status(ALPHA).unwrap().lost_count, 701);
}

#[test]
fn a_slow_uart_pushes_back_and_loses_nothing() {
    let mut mux = mux();
    mux.set_front(ALPHA);
    mux.uart().sent.clear();
    mux.uart().room = 32;
    let text: Vec<u8> = (0..5000).map(|n| b'a' + (n % 26) as u8).collect();
    let mut next = 0;
    while next < text.len() {
        if mux.transmit(ALPHA, text[next]) {
            next += 1;
            continue;
        }
        assert!(mux.uart().is_notified);
        assert_eq!(mux.take_writable(), Consoles::default());
        while mux.take_writable() == Consoles::default() {
            mux.uart().room = 32;
            mux.pump();
        }
    }
    mux.uart().room = usize::MAX;
    while mux.uart().is_notified {
        mux.pump();
    }
    assert_eq!(mux.uart().sent, text);
}

#[test]
fn a_console_that_leaves_the_front_need_not_wait() {
    let mut mux = mux();
    mux.set_front(ALPHA);
    mux.uart().room = 0;
    while mux.transmit(ALPHA, b'x') {}
    mux.set_front(BETA);
    assert_eq!(mux.take_writable().guests().collect::<Vec<_>>(), [0]);
    assert!(mux.transmit(ALPHA, b'x'));
}

#[test]
fn messages_come_between_lines() {
    let mut mux = mux();
    mux.set_front(ALPHA);
    screen(&mut mux);
    print(&mut mux, ALPHA, "half a li");
    assert!(mux.message(format_args!("beta stopped: {}", "SYSTEM_OFF")));
    print(&mut mux, ALPHA, "ne\r\nnext");
    assert_eq!(screen(&mut mux), "half a line\r\nballast| beta stopped: SYSTEM_OFF\r\nnext");
    assert!(!mux.wants_poll());
}

#[test]
fn a_prompt_is_redrawn_below_messages() {
    let mut mux = mux();
    mux.set_front(ALPHA);
    screen(&mut mux);
    print(&mut mux, ALPHA, "~ # \x1b[6nls");
    mux.message(format_args!("one"));
    mux.message(format_args!("two"));
    mux.poll();
    assert_eq!(screen(&mut mux), "~ # \x1b[6nls", "not yet quiet");
    assert!(mux.wants_poll());
    mux.poll();
    assert_eq!(screen(&mut mux), "\r\x1b[Kballast| one\r\nballast| two\r\n~ # ls");
    assert!(!mux.wants_poll());
    print(&mut mux, ALPHA, " -l\r\n");
    assert_eq!(screen(&mut mux), " -l\r\n");
}

#[test]
fn the_monitor_redraws_its_own_line() {
    let mut mux = mux();
    print(&mut mux, Console::MONITOR, "ballast> gue");
    screen(&mut mux);
    mux.message(format_args!("alpha started"));
    mux.poll();
    mux.poll();
    assert_eq!(screen(&mut mux), "\r\x1b[Kalpha started\r\nballast> gue");
    print(&mut mux, Console::MONITOR, "\r\x1b[K");
    assert!(mux.message(format_args!("an erased line is free")));
    assert_eq!(screen(&mut mux), "\r\x1b[Kan erased line is free\r\n");
    assert_eq!(received(&mut mux, Console::MONITOR), [REDRAW]);
}

#[test]
fn a_screen_without_lines_is_left_alone() {
    let mut mux = mux();
    mux.set_front(ALPHA);
    screen(&mut mux);
    let full_screen = "\x1b[H".repeat(100);
    print(&mut mux, ALPHA, &full_screen);
    mux.message(format_args!("later"));
    for _ in 0..9 {
        mux.poll();
    }
    assert_eq!(screen(&mut mux), full_screen);
    mux.set_front(Console::MONITOR);
    assert!(screen(&mut mux).contains("later\r\n"));
}

#[test]
fn hostile_messages_are_cut_and_cleaned() {
    let mut mux = mux();
    mux.message(format_args!("a\x1b[2Jb\nc\r{}", "x".repeat(500)));
    assert_eq!(screen(&mut mux), format!("abc{}\r\n", "x".repeat(237)));
    print(&mut mux, Console::MONITOR, ">");
    let mut accepted = 0;
    while mux.message(format_args!("{}", "y".repeat(400))) {
        accepted += 1;
    }
    assert_eq!(accepted, 16);
}

#[test]
fn frames_of_the_log_leave_the_line_alone() {
    let mut mux = mux();
    let ring = Box::new(Ring::new());
    ring.push_frame_bytes(b"foobar");
    let entry = ring.reader().next(&ring).unwrap();
    mux.set_front(ALPHA);
    screen(&mut mux);
    print(&mut mux, ALPHA, "~ # ");
    assert!(mux.log(&entry));
    assert_eq!(screen(&mut mux), "~ # ");
    mux.poll();
    mux.poll();
    assert_eq!(screen(&mut mux), "\x1b]7700;Zm9vYmFy\x1b\\");
    print(&mut mux, ALPHA, "ls\r\n");
    assert!(mux.log(&entry));
    assert_eq!(screen(&mut mux), "ls\r\n\x1b]7700;Zm9vYmFy\x1b\\");
    print(&mut mux, ALPHA, "not ");
    let accepted = (0..1000).take_while(|_| mux.log(&entry)).count();
    print(&mut mux, ALPHA, "lost\r\n");
    let screen = screen(&mut mux);
    assert!(screen.starts_with("not lost\r\n"));
    assert_eq!(screen.matches("Zm9vYmFy").count(), accepted);
}

#[test]
fn all_consoles_are_shown_line_by_line() {
    let mut mux = mux();
    mux.set_front(ALPHA);
    keys(&mut mux, b"\x1da");
    screen(&mut mux);
    print(&mut mux, ALPHA, "login: ");
    print(&mut mux, BETA, "\x1b[31mred\x1b[0m line\r\npart");
    assert_eq!(screen(&mut mux), "alpha| login: ");
    mux.poll();
    mux.poll();
    assert_eq!(screen(&mut mux), "\r\x1b[Kbeta| red line\r\nalpha| login: ");
    print(&mut mux, ALPHA, "root\r\n");
    print(&mut mux, BETA, "ial\r\n");
    assert_eq!(screen(&mut mux), "root\r\nbeta| partial\r\n");
    keys(&mut mux, b"\x1da");
    assert_eq!(screen(&mut mux), "ballast| Showing: front.\r\n");
}

#[test]
fn nothing_interrupts_a_screen() {
    let mut mux = mux();
    keys(&mut mux, b"\x1da");
    mux.set_screen(true);
    screen(&mut mux);
    let draw = |mux: &mut TestMux| {
        print(mux, Console::MONITOR, "\x1b[HBallast\r\nalpha running\r\n");
        print(mux, ALPHA, "a line\r\n");
        print(mux, BETA, &"another\r\n".repeat(4));
        assert!(mux.message(format_args!("an event")));
        (0..4).for_each(|_| mux.poll());
        screen(mux)
    };
    for _ in 0..3 {
        assert_eq!(draw(&mut mux), "\x1b[HBallast\r\nalpha running\r\n");
        assert!(!mux.wants_poll());
    }
    // No guest waits for a screen: older output is lost and counted.
    for _ in 0..2 * RING_SIZE {
        assert!(mux.transmit(ALPHA, b'x'));
    }
    assert!(mux.status(ALPHA).unwrap().lost_count > 0);
    // Terminals do not show frames, so they need not wait.
    let log = Ring::new();
    log.push_frame_bytes(b"foo");
    mux.set_screen(false);
    mux.set_screen(true);
    (0..4).for_each(|_| mux.poll());
    screen(&mut mux);
    assert!(mux.log(&log.reader().next(&log).unwrap()));
    (0..2).for_each(|_| mux.poll());
    assert!(screen(&mut mux).contains("Zm9v"));
    // Another console in front shows no screen, and kept output comes when the screen ends.
    print(&mut mux, BETA, "kept\r\n");
    assert!(mux.message(format_args!("told")));
    assert_eq!(screen(&mut mux), "");
    mux.set_front(ALPHA);
    print(&mut mux, BETA, "shown\r\n");
    mux.set_front(Console::MONITOR);
    screen(&mut mux);
    print(&mut mux, BETA, "last\r\n");
    assert_eq!(screen(&mut mux), "");
    mux.set_screen(false);
    assert!(screen(&mut mux).contains("beta| last\r\n"));
}

#[test]
fn ctrl_c_drops_input_typed_ahead() {
    let mut mux = mux();
    keys(&mut mux, b"guests\rstop alpha\r");
    assert_eq!(mux.peek(Console::MONITOR), Some(b'g'));
    keys(&mut mux, b"\x03jobs");
    let mut read = || core::iter::from_fn(|| mux.receive(Console::MONITOR)).collect::<Vec<u8>>();
    assert_eq!(read(), b"\x03jobs");
    // A guest gets all input.
    mux.set_front(ALPHA);
    keys(&mut mux, b"cat\r\x03x");
    let read: Vec<u8> = core::iter::from_fn(|| mux.receive(ALPHA)).collect();
    assert_eq!(read, b"cat\r\x03x");
}

#[test]
fn unknown_keys_show_the_help() {
    let mut mux = mux();
    keys(&mut mux, b"\x1d?");
    assert_eq!(screen(&mut mux).lines().count(), HELP.len());
    keys(&mut mux, b"\x1d8");
    assert_eq!(screen(&mut mux), "There is no guest 8.\r\n");
}

#[test]
fn guests_have_consoles_by_index() {
    assert_eq!(Console::guest(8), None);
    assert_eq!(BETA.guest_index(), Some(1));
}

#[derive(Clone, Debug)]
enum Step {
    Print(u8, u8),
    Message,
    Room(usize),
    Poll,
    Key(u8),
    Read(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3u8, 0..30u8).prop_map(|(console, length)| Step::Print(console, length)),
        1 => Just(Step::Message),
        3 => (0..200usize).prop_map(Step::Room),
        2 => Just(Step::Poll),
        2 => any::<u8>().prop_map(Step::Key),
        1 => prop::sample::select(b"\x1dm12na?b".to_vec()).prop_map(Step::Key),
        1 => (0..3u8).prop_map(Step::Read),
    ]
}

/// A console that prints numbered lines, and waits while it is refused.
#[derive(Default)]
struct Printer {
    wanted: Vec<u8>,
    printed: usize,
    lines: usize,
}

fn run(steps: Vec<Step>, may_switch: bool, view: View) -> (TestMux, [Printer; 3], usize) {
    let mut mux = mux();
    mux.set_view(view);
    screen(&mut mux);
    let mut printers: [Printer; 3] = Default::default();
    let mut messages = 0;
    for step in steps {
        match step {
            Step::Print(console, length) => {
                let printer = &mut printers[usize::from(console)];
                let text = format!("<{console}:{}:{}>\r\n", printer.lines, "=".repeat(length.into()));
                printer.wanted.extend(text.bytes());
                printer.lines += 1;
            }
            Step::Message => {
                messages += usize::from(mux.message(format_args!("<m:{messages}:>")));
            }
            Step::Room(room) => {
                mux.uart().room = room;
                mux.pump();
            }
            Step::Poll => mux.poll(),
            Step::Key(key) if may_switch || key == b'x' => {
                mux.input(key);
            }
            Step::Key(_) => {}
            Step::Read(console) => {
                mux.receive(Console(console));
            }
        }
        for (console, printer) in printers.iter_mut().enumerate() {
            for _ in 0..20 {
                let Some(&byte) = printer.wanted.get(printer.printed) else { break };
                printer.printed += usize::from(mux.transmit(Console(console as u8), byte));
            }
        }
    }
    mux.uart().room = usize::MAX;
    for _ in 0..2000 {
        mux.poll();
        for (console, printer) in printers.iter_mut().enumerate() {
            while let Some(&byte) = printer.wanted.get(printer.printed) {
                if !mux.transmit(Console(console as u8), byte) {
                    break;
                }
                printer.printed += 1;
            }
        }
    }
    (mux, printers, messages)
}

/// Returns the lines of `text` that remain on a screen, without erased ones.
fn visible(text: &str) -> Vec<&str> {
    text.split("\r\n").map(|line| line.rsplit("\r\x1b[K").next().unwrap()).collect()
}

proptest! {
    /// With all consoles shown, every line of every console and every message appears once, whole,
    /// in order.
    #[test]
    fn all_lines_arrive_whole(steps in prop::collection::vec(step(), 0..300)) {
        let (mut mux, printers, messages) = run(steps, false, View::All);
        let text = screen(&mut mux);
        let lines = visible(&text);
        for (console, printer) in printers.iter().enumerate() {
            prop_assert_eq!(printer.printed, printer.wanted.len(), "everything was taken");
            let prefix = ["", "alpha| ", "beta| "][console];
            let start = format!("{prefix}<{console}:");
            let got: Vec<_> = lines.iter().filter(|line| line.starts_with(&start)).collect();
            prop_assert_eq!(got.len(), printer.lines);
            for (n, line) in got.iter().enumerate() {
                prop_assert!(line.starts_with(&format!("{start}{n}:")) && line.ends_with('>'), "{}", line);
            }
        }
        let got: Vec<_> = lines.iter().filter(|line| line.starts_with("<m:")).collect();
        prop_assert_eq!(got.len(), messages);
    }

    /// For any input, output and switches, no line is torn, and the front console loses nothing.
    #[test]
    fn no_line_is_torn(steps in prop::collection::vec(step(), 0..300)) {
        let (mut mux, printers, _) = run(steps, true, View::Front);
        prop_assert!(printers.iter().all(|printer| printer.printed == printer.wanted.len()));
        for line in visible(&screen(&mut mux)) {
            // Switching to the front may show the rest of a line whose beginning was shown before.
            prop_assert!(line.matches('<').count() <= 1, "{}", line);
        }
        prop_assert!(!mux.wants_poll() || mux.view == View::Front);
    }

    /// Input for a console arrives there, in order.
    #[test]
    fn input_arrives(keys in prop::collection::vec(any::<u8>(), 0..500)) {
        let mut mux = mux();
        mux.set_front(ALPHA);
        for &key in &keys {
            if key == PREFIX {
                mux.input(PREFIX);
            }
            mux.input(key);
        }
        prop_assert_eq!(received(&mut mux, ALPHA), keys);
    }
}
