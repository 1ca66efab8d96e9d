//! The multiplexer: one serial line shared by the monitor and the guests.
//!
//! Each of them has a *console*: a ring of input and a ring of output. One console is *in front*: the
//! operator's keys go to it, its output goes out. Output of the others is kept, the oldest lost and
//! counted, and shown when they come to front, behind a line that names them. In [`View::All`] the
//! others' lines are shown as they end, each behind its console's name, and nobody loses anything:
//! a console whose ring is full has to wait.
//!
//! *Messages* (the log, events of guests) are lines that belong to no console. They and the others'
//! lines go out where the front console is at a line's start, so that no line is torn. Where it stays
//! within a line (a prompt), they come when it has been quiet for a [`Mux::poll`] or two: the line is
//! taken off the screen and drawn again below them.
//!
//! The prefix key is Ctrl-], which neither QEMU's monitor key nor shells use. It works whether or not
//! the front console reads. What follows it is in [`HELP`].
//!
//! Cost: a byte of the front console, with nothing else under way, takes the short path of
//! [`Mux::transmit`]. Nothing here allocates, and all loops are bounded by the rings' sizes.

mod filter;

use core::fmt::{self, Write};

use self::filter::Filter;
use super::ring::Ring;
use crate::device::vpl011::Line;

/// How many guests have a console.
pub const GUESTS: usize = 8;
/// All consoles: the monitor's and the guests'.
pub const CONSOLES: usize = GUESTS + 1;
/// Size of a console's rings that holds a paste of 10 KiB and a good screenful of boot messages.
pub const RING_SIZE: usize = 16 * 1024;
/// Size that [`Storage::out`] and [`Storage::messages`] should have.
pub const QUEUE_SIZE: usize = 4 * 1024;
/// The prefix key: Ctrl-].
pub const PREFIX: u8 = 0x1d;
/// Redraws the monitor's line: Ctrl-L, put into its input when its line was disturbed.
pub const REDRAW: u8 = 0x0c;

/// What the prefix key's help says, line by line.
pub const HELP: [&str; 7] = [
    "Ctrl-] m       to the monitor",
    "Ctrl-] 1..8    to guest 1 to 8",
    "Ctrl-] n       to the next console",
    "Ctrl-] a       show all guests, each line behind its name, or only the front one",
    "Ctrl-] b       send a break to the guest in front (Linux: SysRq)",
    "Ctrl-] Ctrl-]  send Ctrl-] itself",
    "Ctrl-] ?       this help",
];

/// A front console that has more than this waiting is told to wait: what is typed stays prompt.
const FRONT_BACKLOG: usize = 1024;
/// Longest part of a line that can be drawn again.
const LINE: usize = 256;
/// Longest line of a console that is not in front, and longest message, shown in one piece.
const OTHER_LINE: usize = 240;
/// Goes to the line's start and erases the line: CR, CSI K.
const ERASE: &[u8; 4] = b"\r\x1b[K";
/// How many steps, a byte or a line each, one [`Mux::pump`] takes.
const BURST: usize = 256;
/// A direct console that there is not.
const NOBODY: Console = Console(u8::MAX);

/// The UART that the multiplexer sends by.
pub trait Uart {
    /// Sends `byte`, or refuses it where there is no room.
    fn try_write(&mut self, byte: u8) -> bool;
    /// From now on, call [`Mux::pump`] when there is room (`true`), or no longer.
    fn notify_room(&mut self, is_wanted: bool);
}

/// The monitor's console or a guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Console(u8);

impl Console {
    /// The monitor's console.
    pub const MONITOR: Self = Self(0);

    /// The console of the guest with this index (0 to 7).
    pub const fn guest(index: usize) -> Option<Self> {
        if index < GUESTS { Some(Self(index as u8 + 1)) } else { None }
    }

    /// The index of the guest whose console it is; `None` for the monitor's.
    pub const fn guest_index(self) -> Option<usize> {
        (self.0 as usize).checked_sub(1)
    }

    fn bit(self) -> u16 {
        1 << (self.0 & 15)
    }
}

/// What the line shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The front console.
    Front,
    /// The front console and, line by line behind their names, all others.
    All,
}

/// What has to be done after a byte came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// This console has input: wake it.
    Received(Console),
    /// Give the guest with this index a break condition.
    Break(usize),
    /// Another console, or another view: wake this one, which may have input too.
    Front(Console),
}

/// A set of consoles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consoles(u16);

impl Consoles {
    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Takes the indices of the guests in it.
    pub fn guests(self) -> impl Iterator<Item = usize> {
        (0..GUESTS).filter(move |index| self.0 & 2 << index != 0)
    }

    /// Whether the monitor is in it.
    pub fn has_monitor(self) -> bool {
        self.0 & 1 != 0
    }
}

/// Storage for what the multiplexer itself puts together.
#[derive(Debug)]
pub struct Storage<'a> {
    /// What is ready to be sent; [`QUEUE_SIZE`].
    pub out: &'a mut [u8],
    /// Messages that wait for a line's start; [`QUEUE_SIZE`].
    pub messages: &'a mut [u8],
}

/// What there is to say of a console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it is in front.
    pub is_front: bool,
    /// Output that is kept and not yet shown, in bytes.
    pub kept: usize,
    /// How much output is kept at most, in bytes.
    pub limit: usize,
    /// Output lost since boot because it was not shown in time, in bytes.
    pub lost_count: u64,
    /// Input lost since boot because it was not read in time, in bytes.
    pub input_lost_count: u64,
}

#[derive(Debug, Default)]
struct Slot<'a> {
    /// Empty where there is no console.
    name: &'a str,
    input: Ring<'a>,
    output: Ring<'a>,
    input_lost_count: u64,
    lost_count: u64,
    /// Of `lost_count`, what the operator has not been told.
    untold_count: u64,
}

/// The multiplexer.
#[derive(Debug)]
pub struct Mux<'a, U> {
    uart: U,
    /// The console whose bytes may go to the UART at once.
    direct: Console,
    front: Console,
    view: View,
    /// What the front console has printed since its last line end, as far as it fits.
    line: [u8; LINE],
    line_len: usize,
    out: Ring<'a>,
    messages: Ring<'a>,
    slots: [Slot<'a>; CONSOLES],
    /// The prefix key was the last.
    is_prefixed: bool,
    /// The front console has sent nothing since the last poll.
    is_quiet: bool,
    /// The front console's line is off the screen, messages go out.
    is_interrupted: bool,
    /// The name of the front console stands at the start of the current line.
    has_prefix: bool,
    /// Whose turn was last where several have lines.
    turn: u8,
    /// Consoles that were refused a byte.
    refused: Consoles,
    is_notified: bool,
}

impl<'a, U: Uart> Mux<'a, U> {
    /// A multiplexer with the monitor's console alone.
    pub fn new(uart: U, storage: Storage<'a>, input: &'a mut [u8], output: &'a mut [u8]) -> Self {
        let mut mux = Self {
            uart,
            direct: NOBODY,
            front: Console::MONITOR,
            view: View::Front,
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

    /// Gives `console` a name (its first 16 characters appear before its lines) and rings for its
    /// input and its output.
    pub fn add(&mut self, console: Console, name: &'a str, input: &'a mut [u8], output: &'a mut [u8]) {
        if let Some(slot) = self.slots.get_mut(usize::from(console.0)) {
            *slot = Slot { name, input: Ring::new(input), output: Ring::new(output), ..Slot::default() };
        }
    }

    /// The console in front.
    pub fn front(&self) -> Console {
        self.front
    }

    /// What the line shows.
    pub fn view(&self) -> View {
        self.view
    }

    /// The UART, for what is no transmission: reading what came in.
    pub fn uart(&mut self) -> &mut U {
        &mut self.uart
    }

    /// What there is to say of a console, if it exists.
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

    /// The console with this name: a guest's, or "monitor".
    pub fn find(&self, name: &str) -> Option<Console> {
        let at = self.slots.iter().position(|slot| !slot.name.is_empty() && slot.name == name)?;
        Some(Console(at as u8))
    }

    /// Sends a byte of `console` or keeps it; refuses it (`false`) where the console has to wait until
    /// it is in [`Mux::take_writable`].
    #[inline]
    pub fn transmit(&mut self, console: Console, byte: u8) -> bool {
        if self.direct == console && self.uart.try_write(byte) {
            self.note(byte);
            return true;
        }
        self.queue(console, byte)
    }

    /// The next byte of input for `console`.
    pub fn receive(&mut self, console: Console) -> Option<u8> {
        self.slots.get_mut(usize::from(console.0))?.input.pop()
    }

    /// The same without taking it.
    pub fn peek(&self, console: Console) -> Option<u8> {
        self.slots.get(usize::from(console.0))?.input.first()
    }

    /// The guest's end of its console, for its vPL011.
    #[inline]
    pub fn line(&mut self, console: Console) -> ConsoleLine<'_, 'a, U> {
        ConsoleLine { mux: self, console }
    }

    /// A byte from the operator.
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
            b'a' | b'A' => self.set_view(if self.view == View::All { View::Front } else { View::All }),
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

    /// Brings `console` to front and shows what was kept of its output.
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
            let _ = write!(out, ", {lost} older ones lost");
        }
        let _ = out.write_str(" ---\r\n");
        self.begin_replay();
        if console == Console::MONITOR {
            self.redraw_monitor();
        }
        self.pump();
    }

    /// Changes what the line shows.
    pub fn set_view(&mut self, view: View) {
        if view == self.view {
            return;
        }
        self.view = view;
        match view {
            View::All => self.message(format_args!("Showing all consoles.")),
            View::Front => self.message(format_args!("Showing the front console only.")),
        };
        self.pump();
    }

    /// Keeps at most `limit` bytes of what `console` prints while another is in front: no more than its
    /// ring holds, no less than a line.
    pub fn set_limit(&mut self, console: Console, limit: usize) {
        if let Some(slot) = self.slots.get_mut(usize::from(console.0)) {
            let lost = slot.output.set_limit(limit.max(LINE)) as u64;
            slot.lost_count += lost;
            slot.untold_count += lost;
        }
    }

    /// Shows a line that belongs to no console, when the front console's line ends. Control characters
    /// are left out, a text longer than 240 bytes is cut. `false` if there is no room; offer it again.
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

    /// Sends what waits, as far as the UART takes it, but no more than a few hundred bytes at a time: other
    /// CPUs may wait for the multiplexer. Call it when the UART has room.
    pub fn pump(&mut self) {
        for _ in 0..BURST {
            if !self.send_composed() || !self.compose() && !self.send_front() {
                break;
            }
        }
        self.refresh();
    }

    /// Lets messages through while the front console is quiet. Call it every 50 ms or so while
    /// [`Mux::wants_poll`].
    pub fn poll(&mut self) {
        if self.is_quiet && self.has_pending() && self.line_len <= LINE {
            self.interrupt_line();
        }
        self.is_quiet = true;
        self.pump();
    }

    /// Whether something waits for [`Mux::poll`], or for [`Mux::pump`].
    pub fn wants_poll(&self) -> bool {
        self.has_pending() || self.is_interrupted || self.is_notified
    }

    /// The consoles that were refused a byte and would not be refused any more.
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

    /// Whether [`Mux::take_writable`] may have something.
    #[inline]
    pub fn has_refused(&self) -> bool {
        self.refused.0 != 0
    }

    /// Puts `byte` into `console`'s ring.
    #[inline(never)]
    fn queue(&mut self, console: Console, byte: u8) -> bool {
        let is_front = console == self.front;
        let room = self.room(console);
        let Some(slot) = self.slots.get_mut(usize::from(console.0)) else { return true };
        if is_front || self.view == View::All {
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

    /// How many bytes `console` may add without loss.
    fn room(&self, console: Console) -> usize {
        let Some(slot) = self.slots.get(usize::from(console.0)) else { return 0 };
        if console == self.front {
            FRONT_BACKLOG.min(slot.output.limit()).saturating_sub(slot.output.len())
        } else if self.view == View::All {
            slot.output.free()
        } else {
            usize::MAX
        }
    }

    fn type_byte(&mut self, byte: u8) -> Effect {
        let Some(slot) = self.slots.get_mut(usize::from(self.front.0)) else { return Effect::None };
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

    /// The front console's kept output begins at a line's start even where older output was lost.
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

    /// Keeps account of the front console's current line.
    #[inline]
    fn note(&mut self, byte: u8) {
        if byte == b'\n' {
            self.line_len = 0;
            self.has_prefix = false;
        } else {
            self.line[self.line_len % LINE] = byte;
            self.line_len += 1;
            if byte == ERASE[3] {
                self.note_erasure();
            }
        }
    }

    /// A line that is erased from its start is as good as a new one.
    #[cold]
    fn note_erasure(&mut self) {
        if self.line_len <= LINE && self.line[..self.line_len].ends_with(ERASE) {
            self.line_len = 0;
        }
    }

    /// Sends what is put together; `true` when all of it is sent.
    fn send_composed(&mut self) -> bool {
        while let Some(byte) = self.out.first() {
            if !self.uart.try_write(byte) {
                return false;
            }
            self.out.pop();
        }
        true
    }

    /// Sends one byte of the front console; `false` if there is none or no room.
    fn send_front(&mut self) -> bool {
        let Some(slot) = self.slots.get_mut(usize::from(self.front.0)) else { return false };
        let Some(byte) = slot.output.first() else { return false };
        if !self.uart.try_write(byte) {
            return false;
        }
        slot.output.pop();
        self.note(byte);
        true
    }

    /// Whether lines wait that are not the front console's.
    fn has_pending(&self) -> bool {
        !self.messages.is_empty() || self.view == View::All && (0..CONSOLES).any(|at| self.has_other_line(at))
    }

    fn has_other_line(&self, at: usize) -> bool {
        at != usize::from(self.front.0)
            && self
                .slots
                .get(at)
                .is_some_and(|slot| slot.output.lines() != 0 || slot.output.len() >= OTHER_LINE)
    }

    /// Puts together what comes before the front console's next byte, if anything does.
    fn compose(&mut self) -> bool {
        let is_within_line = self.line_len != 0 || self.has_prefix;
        if is_within_line && !self.is_interrupted {
            return false;
        }
        if !self.messages.is_empty() {
            self.compose_message();
            return true;
        }
        if self.view == View::All {
            for step in 1..=CONSOLES {
                let at = (usize::from(self.turn) + step) % CONSOLES;
                if self.has_other_line(at) {
                    self.turn = at as u8;
                    self.compose_other_line(at);
                    return true;
                }
                let is_front = at == usize::from(self.front.0);
                if is_front && self.slots.get(at).is_some_and(|slot| !slot.output.is_empty()) {
                    self.turn = at as u8;
                    break;
                }
            }
        }
        if self.is_interrupted {
            self.restore_line();
            return true;
        }
        self.compose_prefix()
    }

    /// Puts the front console's name before its line, where all are shown.
    fn compose_prefix(&mut self) -> bool {
        let Some(slot) = self.slots.get(usize::from(self.front.0)) else { return false };
        let is_wanted = self.view == View::All && self.front != Console::MONITOR;
        if !is_wanted || self.has_prefix || slot.output.is_empty() {
            return false;
        }
        self.has_prefix = true;
        self.put_name(usize::from(self.front.0));
        true
    }

    fn compose_message(&mut self) {
        if self.front != Console::MONITOR {
            self.out.push_all(b"ballast| ");
        }
        while let Some(byte) = self.messages.pop().filter(|&byte| byte != b'\n') {
            self.out.push(byte);
        }
        self.out.push_all(b"\r\n");
    }

    fn compose_other_line(&mut self, at: usize) {
        self.put_name(at);
        let Some(slot) = self.slots.get_mut(at) else { return };
        let mut filter = Filter::new();
        for _ in 0..OTHER_LINE {
            match slot.output.pop() {
                None | Some(b'\n') => break,
                Some(byte) if filter.passes(byte) => {
                    self.out.push(byte);
                }
                Some(_) => {}
            }
        }
        self.out.push_all(b"\r\n");
    }

    /// Takes the front console's line off the screen.
    fn interrupt_line(&mut self) {
        if self.line_len != 0 && !self.is_interrupted {
            self.is_interrupted = true;
            self.out.push_all(ERASE);
        }
    }

    /// Draws the front console's line again.
    fn restore_line(&mut self) {
        self.is_interrupted = false;
        if self.front == Console::MONITOR {
            // At its prompt it draws its line itself; elsewhere what follows here stands.
            self.redraw_monitor();
        }
        if self.has_prefix {
            self.put_name(usize::from(self.front.0));
        }
        let mut filter = Filter::for_redraw();
        for &byte in self.line.iter().take(self.line_len) {
            if filter.passes(byte) {
                self.out.push(byte);
            }
        }
    }

    /// Puts the start of a line that is shown among others'.
    fn put_name(&mut self, at: usize) {
        if let Some(slot) = self.slots.get(at) {
            let _ = write!(Text(&mut self.out), "{:.16}| ", slot.name);
        }
    }

    /// Recomputes what the short path reads, and whether the UART should call back.
    fn refresh(&mut self) {
        let front_waits =
            self.slots.get(usize::from(self.front.0)).is_some_and(|slot| !slot.output.is_empty());
        let is_waiting = front_waits || !self.out.is_empty();
        let is_direct =
            !is_waiting && !self.is_interrupted && self.view == View::Front && self.messages.is_empty();
        self.direct = if is_direct { self.front } else { NOBODY };
        if is_waiting != self.is_notified {
            self.is_notified = is_waiting;
            self.uart.notify_room(is_waiting);
        }
    }
}

/// One console's end of the multiplexer.
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

/// The key behind the prefix that brings a console to front.
struct Key(Console);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.guest_index() {
            None => f.write_str("m"),
            Some(index) => write!(f, "{}", index + 1),
        }
    }
}

/// Formats into a ring; what does not fit is left out.
struct Text<'r, 'a>(&'r mut Ring<'a>);

impl Write for Text<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0.push(byte);
        }
        Ok(())
    }
}

/// Formats one line into a ring, without what a terminal would obey.
struct Plain<'r, 'a> {
    ring: &'r mut Ring<'a>,
    left: usize,
    filter: Filter,
}

impl Write for Plain<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.left != 0 && self.filter.passes(byte) {
                self.ring.push(byte);
                self.left -= 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
