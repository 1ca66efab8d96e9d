//! The multiplexer: one serial line shared by the monitor and the guests.
//!
//! The monitor and each guest have a *console*: a ring of input and a ring of output. One console is *in front*: the
//! operator's keys go to it, and its output goes out. Output of the other consoles is kept; when a ring is full, its oldest
//! bytes are dropped and counted. A console's kept output is shown when it comes to the front, behind a line that names it.
//! In [`View::All`] the lines of other consoles are shown as they end, each behind its console's name. Nothing is lost then:
//! a console whose ring is full has to wait.
//!
//! *Messages* (the log, events of guests) are lines that belong to no console. Messages and other consoles' lines go out
//! when the front console is at a line's start, so that no line is torn. If it stays within a line, as at a prompt, they
//! go out once it has been quiet for a [`Mux::poll`] or two: its line is erased and drawn again below them.
//!
//! Lines of the log may be *frames* for a program on the PC instead of text (`log=frames`): an operating system command
//! (ECMA-48, 8.3.89), which terminals ignore, with the frame in base64.
//!
//! The prefix key is Ctrl-], which is neither QEMU's monitor key nor used by shells. It works even if the front console does
//! not read its input. [`HELP`] lists the keys behind it.
//!
//! A byte of the front console takes the fast path of [`Mux::transmit`] if nothing else waits. Nothing here allocates, and
//! all loops are bounded by the sizes of the rings.

mod compose;
mod console;
mod filter;
mod frame;

use core::fmt::{self, Write};

use self::compose::{Plain, Text};
use self::console::Key;
pub use self::console::{Console, Consoles, Effect, Status, Storage, View};
use self::filter::Filter;
pub use self::frame::{Base64, Sequence};
use super::ring::Ring;
use crate::device::vpl011::Line;
use crate::observe::log::Entry;

/// Most guests with a console.
pub const GUESTS: usize = 8;
/// The number of consoles: the monitor's and the guests'.
pub const CONSOLES: usize = GUESTS + 1;
/// The size of a console's rings: room for a paste of 10 KiB, or some screens of boot messages.
pub const RING_SIZE: usize = 16 * 1024;
/// The size of [`Storage::out`] and [`Storage::messages`].
pub const QUEUE_SIZE: usize = 4 * 1024;
/// The prefix key: Ctrl-].
pub const PREFIX: u8 = 0x1d;
/// Ctrl-L, which redraws the monitor's line. Put into its input when the line was disturbed.
pub const REDRAW: u8 = 0x0c;

/// Ctrl-C, which interrupts the monitor's command.
pub const INTERRUPT: u8 = 0x03;

/// The help of the prefix key, line by line.
pub const HELP: [&str; 7] = [
    "Ctrl-] m       to the monitor",
    "Ctrl-] 1..8    to guest 1 to 8",
    "Ctrl-] n       to the next console",
    "Ctrl-] a       show all guests, each line behind its name, or only the front one",
    "Ctrl-] b       send a break to the guest in front (Linux: SysRq)",
    "Ctrl-] Ctrl-]  send Ctrl-] itself",
    "Ctrl-] ?       this help",
];

/// The most output that may wait at the front console before it has to wait too, so that echo stays prompt.
const FRONT_BACKLOG: usize = 1024;
/// The longest part of a line that can be redrawn.
const LINE: usize = 256;
/// The longest message, and the longest line of another console, that is shown in one piece.
const OTHER_LINE: usize = 240;
/// The number of steps, a byte or a line each, of one [`Mux::pump`].
const BURST: usize = 256;
/// A console that does not exist.
const NOBODY: Console = Console(u8::MAX);

/// The UART of the multiplexer.
pub trait Uart {
    /// Sends `byte`; returns `false` if there is no room.
    fn try_write(&mut self, byte: u8) -> bool;
    /// Begins or ends to call [`Mux::pump`] when there is room.
    fn notify_room(&mut self, is_wanted: bool);
}

#[derive(Debug, Default)]
struct Slot<'a> {
    /// The console's name; empty if there is none.
    name: &'a str,
    input: Ring<'a>,
    output: Ring<'a>,
    input_lost_count: u64,
    lost_count: u64,
    /// The part of `lost_count` that was not reported yet.
    untold_count: u64,
}

/// The multiplexer.
#[derive(Debug)]
pub struct Mux<'a, U> {
    uart: U,
    /// The console whose bytes may go straight to the UART.
    direct: Console,
    front: Console,
    view: View,
    /// True while the monitor draws a screen.
    has_screen: bool,
    /// The front console's output since its last line end, cut to the size.
    line: [u8; LINE],
    line_len: usize,
    out: Ring<'a>,
    messages: Ring<'a>,
    slots: [Slot<'a>; CONSOLES],
    /// True if the last key was the prefix key.
    is_prefixed: bool,
    /// True if the front console has sent nothing since the last poll.
    is_quiet: bool,
    /// True while the front console's line is erased and messages go out.
    is_interrupted: bool,
    /// True if the current line begins with the front console's name.
    has_prefix: bool,
    /// The console whose turn was last, if several have lines.
    turn: u8,
    /// The consoles that were refused a byte.
    refused: Consoles,
    is_notified: bool,
}

impl<'a, U: Uart> Mux<'a, U> {
    /// Creates a multiplexer with the monitor's console.
    pub fn new(uart: U, storage: Storage<'a>, input: &'a mut [u8], output: &'a mut [u8]) -> Self {
        let mut mux = Self {
            uart,
            direct: NOBODY,
            front: Console::MONITOR,
            view: View::Front,
            has_screen: false,
            line: [0; LINE],
            line_len: 0,
            out: Ring::new(storage.out),
            messages: Ring::new(storage.messages),
            slots: core::array::from_fn(|_| Slot::default()),
            is_prefixed: false,
            is_quiet: false,
            is_interrupted: false,
            has_prefix: false,
            turn: 0,
            refused: Consoles(0),
            is_notified: false,
        };
        mux.add(Console::MONITOR, "monitor", input, output);
        mux.refresh();
        mux
    }

    /// Adds `console` with its name, of which 16 characters appear before its lines, and rings for input and output.
    pub fn add(&mut self, console: Console, name: &'a str, input: &'a mut [u8], output: &'a mut [u8]) {
        if let Some(slot) = self.slots.get_mut(usize::from(console.0)) {
            *slot = Slot { name, input: Ring::new(input), output: Ring::new(output), ..Slot::default() };
        }
    }

    /// Returns the UART, to read received bytes.
    pub fn uart(&mut self) -> &mut U {
        &mut self.uart
    }

    /// Returns the status of a console, if it exists.
    pub fn status(&self, console: Console) -> Option<Status<'a>> {
        let slot = self.slots.get(usize::from(console.0)).filter(|slot| !slot.name.is_empty())?;
        Some(Status {
            name: slot.name,
            is_front: console == self.front,
            kept: slot.output.len(),
            limit: slot.output.limit(),
            lost_count: slot.lost_count,
            input_lost_count: slot.input_lost_count,
        })
    }

    /// Sends or keeps a byte of `console`; returns `false` if the console has to wait until [`Mux::take_writable`] has it.
    #[inline]
    pub fn transmit(&mut self, console: Console, byte: u8) -> bool {
        if self.direct == console && self.uart.try_write(byte) {
            self.note(byte);
            return true;
        }
        self.queue(console, byte)
    }

    /// Takes the next byte of input of `console`.
    pub fn receive(&mut self, console: Console) -> Option<u8> {
        self.slots.get_mut(usize::from(console.0))?.input.pop()
    }

    /// Returns the next byte of input of `console` and leaves it there.
    pub fn peek(&self, console: Console) -> Option<u8> {
        self.slots.get(usize::from(console.0))?.input.first()
    }

    /// Returns the guest's end of its console, for its vPL011.
    #[inline]
    pub fn line(&mut self, console: Console) -> ConsoleLine<'_, 'a, U> {
        ConsoleLine { mux: self, console }
    }

    /// Processes a byte from the operator.
    pub fn input(&mut self, byte: u8) -> Effect {
        let was_prefixed = core::mem::replace(&mut self.is_prefixed, byte == PREFIX);
        if !was_prefixed {
            return if byte == PREFIX { Effect::None } else { self.type_byte(byte) };
        }
        self.is_prefixed = false;
        match byte {
            PREFIX => return self.type_byte(PREFIX),
            b'm' | b'M' | b'0' => self.set_front(Console::MONITOR),
            b'1'..=b'8' => self.set_front(Console(byte - b'0')),
            b'n' | b'N' => self.set_front(self.next_console()),
            b'a' | b'A' => {
                let view = if self.view == View::All { View::Front } else { View::All };
                self.message(format_args!("Showing: {}.", view.name()));
                self.set_view(view);
            }
            b'b' | b'B' => {
                if let Some(guest) = self.front.guest_index() {
                    return Effect::Break(guest);
                }
            }
            _ => {
                for line in HELP {
                    self.message(format_args!("{line}"));
                }
                return Effect::None;
            }
        }
        Effect::Front(self.front)
    }

    /// Brings `console` to the front and shows its kept output.
    pub fn set_front(&mut self, console: Console) {
        let Some(slot) = self.slots.get(usize::from(console.0)).filter(|slot| !slot.name.is_empty()) else {
            self.message(format_args!("There is no guest {}.", console.0));
            return;
        };
        if console == self.front {
            return;
        }
        if self.line_len != 0 && !self.is_interrupted {
            self.out.push_all(b"\r\n");
        }
        let (name, kept, lost) = (slot.name, slot.output.len(), slot.untold_count);
        self.front = console;
        self.line_len = 0;
        self.is_interrupted = false;
        self.has_prefix = false;
        let mut out = Text(&mut self.out);
        let _ = write!(out, "--- {name} (Ctrl-] {})", Key(console));
        if kept != 0 {
            let _ = write!(out, ": {kept} bytes kept");
        }
        if lost != 0 {
            let _ = write!(out, ", {lost} older bytes lost");
        }
        let _ = out.write_str(" ---\r\n");
        self.begin_replay();
        if console == Console::MONITOR {
            self.redraw_monitor();
        }
        self.pump();
    }

    /// Changes the view.
    pub fn set_view(&mut self, view: View) {
        if view == self.view {
            return;
        }
        self.view = view;
        self.pump();
    }

    /// Holds back messages and other consoles' lines while the monitor draws a screen in front. They are kept, as in
    /// [`View::Front`], and shown when the screen ends.
    pub fn set_screen(&mut self, is_shown: bool) {
        self.has_screen = is_shown;
        self.pump();
    }

    /// Tests if a screen is shown, which nothing may interrupt.
    fn shows_screen(&self) -> bool {
        self.has_screen && self.front == Console::MONITOR
    }

    /// Tests if other consoles' lines are shown.
    fn shows_all(&self) -> bool {
        self.view == View::All && !self.shows_screen()
    }

    /// Limits the kept output of `console` to `limit` bytes, at least a line and at most its ring's size.
    pub fn set_limit(&mut self, console: Console, limit: usize) {
        if let Some(slot) = self.slots.get_mut(usize::from(console.0)) {
            let lost = slot.output.set_limit(limit.max(LINE)) as u64;
            slot.lost_count += lost;
            slot.untold_count += lost;
        }
    }

    /// Queues a message, which is shown when the front console's line ends. Control characters are removed, and a text is cut
    /// to 240 bytes. Returns `false` if there is no room; offer it again.
    pub fn message(&mut self, text: fmt::Arguments<'_>) -> bool {
        if self.messages.free() <= OTHER_LINE {
            return false;
        }
        let mut queue = Plain { ring: &mut self.messages, left: OTHER_LINE, filter: Filter::new() };
        let _ = queue.write_fmt(text);
        self.messages.push(b'\n');
        self.is_quiet = false;
        self.pump();
        true
    }

    /// Queues a line of the log, as text or as a frame. Returns `false` if there is no room; offer it again.
    pub fn log(&mut self, entry: &Entry) -> bool {
        let Some(bytes) = entry.frame() else { return self.message(format_args!("{entry}")) };
        if self.messages.free() <= frame::size(bytes.len()) {
            return false;
        }
        frame::write(bytes, |byte| {
            self.messages.push(byte);
        });
        self.messages.push(b'\n');
        self.is_quiet = false;
        self.pump();
        true
    }

    /// Sends waiting bytes while the UART has room, but only a few hundred at a time, because other CPUs may wait for the
    /// multiplexer. Call it when the UART has room.
    pub fn pump(&mut self) {
        for _ in 0..BURST {
            if !self.send_composed() || !self.compose() && !self.send_front() {
                break;
            }
        }
        self.refresh();
    }

    /// Shows messages while the front console is quiet. Call it about every 50 ms while [`Mux::wants_poll`].
    pub fn poll(&mut self) {
        if self.is_quiet {
            self.compose_frames();
        }
        if self.is_quiet && self.has_pending() && self.line_len <= LINE && !self.shows_screen() {
            self.interrupt_line();
        }
        self.is_quiet = true;
        self.pump();
    }

    /// Tests if something waits for [`Mux::poll`] or [`Mux::pump`].
    pub fn wants_poll(&self) -> bool {
        self.has_pending() || self.is_interrupted || self.is_notified
    }

    /// Takes the consoles that were refused a byte and now have room.
    pub fn take_writable(&mut self) -> Consoles {
        let mut writable = Consoles(0);
        for at in 0..CONSOLES {
            let console = Console(at as u8);
            if self.refused.0 & console.bit() != 0 && self.room(console) > FRONT_BACKLOG / 2 {
                writable.0 |= console.bit();
            }
        }
        self.refused.0 &= !writable.0;
        writable
    }

    /// Adds `byte` to the ring of `console`.
    #[inline(never)]
    fn queue(&mut self, console: Console, byte: u8) -> bool {
        let is_front = console == self.front;
        let (room, may_wait) = (self.room(console), is_front || self.shows_all());
        let Some(slot) = self.slots.get_mut(usize::from(console.0)) else { return true };
        if may_wait {
            if room == 0 {
                if slot.output.limit() == 0 {
                    return true;
                }
                self.refused.0 |= console.bit();
                return false;
            }
            slot.output.push(byte);
            self.is_quiet &= !is_front;
            self.pump();
        } else if !slot.output.push_over(byte) {
            slot.lost_count += 1;
            slot.untold_count += 1;
        }
        true
    }

    /// Returns the number of bytes that `console` may add without loss.
    fn room(&self, console: Console) -> usize {
        let Some(slot) = self.slots.get(usize::from(console.0)) else { return 0 };
        if console == self.front {
            FRONT_BACKLOG.min(slot.output.limit()).saturating_sub(slot.output.len())
        } else if self.shows_all() {
            slot.output.free()
        } else {
            usize::MAX
        }
    }

    fn type_byte(&mut self, byte: u8) -> Effect {
        let Some(slot) = self.slots.get_mut(usize::from(self.front.0)) else { return Effect::None };
        // As on a terminal, Ctrl-C drops input typed ahead. A command looks only at the next byte.
        if byte == INTERRUPT && self.front == Console::MONITOR {
            slot.input.clear();
        }
        if !slot.input.push(byte) {
            slot.input_lost_count += 1;
        }
        Effect::Received(self.front)
    }

    fn next_console(&self) -> Console {
        (1..=CONSOLES)
            .map(|step| (usize::from(self.front.0) + step) % CONSOLES)
            .find(|&at| self.slots.get(at).is_some_and(|slot| !slot.name.is_empty()))
            .map_or(Console::MONITOR, |at| Console(at as u8))
    }

    /// Drops the rest of a torn line if older output of the front console was lost.
    fn begin_replay(&mut self) {
        let Some(slot) = self.slots.get_mut(usize::from(self.front.0)) else { return };
        if core::mem::take(&mut slot.untold_count) != 0 && slot.output.lines() != 0 {
            while slot.output.pop().is_some_and(|byte| byte != b'\n') {}
        }
    }

    fn redraw_monitor(&mut self) {
        let [monitor, ..] = &mut self.slots;
        if monitor.input.last() != Some(REDRAW) {
            monitor.input.push(REDRAW);
        }
    }
}

/// A console's end of the multiplexer.
#[derive(Debug)]
pub struct ConsoleLine<'m, 'a, U> {
    mux: &'m mut Mux<'a, U>,
    console: Console,
}

impl<U: Uart> Line for ConsoleLine<'_, '_, U> {
    #[inline]
    fn transmit(&mut self, byte: u8) -> bool {
        self.mux.transmit(self.console, byte)
    }

    fn receive(&mut self) -> Option<u8> {
        self.mux.receive(self.console)
    }
}

#[cfg(test)]
mod tests;
