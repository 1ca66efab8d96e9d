//! The order of output: the front console's bytes, and between its lines messages and other consoles' lines.

use core::fmt::{self, Write};

use super::console::Console;
use super::filter::Filter;
use super::frame::{self, FRAME};
use super::{CONSOLES, LINE, Mux, NOBODY, OTHER_LINE, Uart, View};
use crate::monitor::ring::Ring;

/// Goes to the line's start and erases the line: CR, CSI K.
pub(super) const ERASE: &[u8; 4] = b"\r\x1b[K";

impl<U: Uart> Mux<'_, U> {
    /// Tracks the front console's current line.
    #[inline]
    pub(super) fn note(&mut self, byte: u8) {
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

    /// Begins a new line if the current one was erased from its start.
    #[cold]
    pub(super) fn note_erasure(&mut self) {
        if self.line_len <= LINE && self.line[..self.line_len].ends_with(ERASE) {
            self.line_len = 0;
        }
    }

    /// Sends the composed bytes; returns `true` once all are sent.
    pub(super) fn send_composed(&mut self) -> bool {
        while let Some(byte) = self.out.first() {
            if !self.uart.try_write(byte) {
                return false;
            }
            self.out.pop();
        }
        true
    }

    /// Sends one byte of the front console; returns `false` if there is none or no room.
    pub(super) fn send_front(&mut self) -> bool {
        let Some(slot) = self.slots.get_mut(usize::from(self.front.0)) else { return false };
        let Some(byte) = slot.output.first() else { return false };
        if !self.uart.try_write(byte) {
            return false;
        }
        slot.output.pop();
        self.note(byte);
        true
    }

    /// Tests if messages or other consoles' lines wait that may be shown.
    pub(super) fn has_pending(&self) -> bool {
        match self.shows_screen() {
            true => self.messages.first() == Some(FRAME),
            false => {
                !self.messages.is_empty()
                    || self.shows_all() && (0..CONSOLES).any(|at| self.has_other_line(at))
            }
        }
    }

    pub(super) fn has_other_line(&self, at: usize) -> bool {
        at != usize::from(self.front.0)
            && self
                .slots
                .get(at)
                .is_some_and(|slot| slot.output.lines() != 0 || slot.output.len() >= OTHER_LINE)
    }

    /// Composes output that goes before the front console's next byte; returns `false` if there is none.
    pub(super) fn compose(&mut self) -> bool {
        let is_within_line = self.line_len != 0 || self.has_prefix;
        if is_within_line && !self.is_interrupted {
            return false;
        }
        if self.shows_screen() && !self.is_interrupted && self.messages.first() != Some(FRAME) {
            return false;
        }
        if !self.messages.is_empty() {
            self.compose_message();
            return true;
        }
        if self.shows_all() {
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

    /// Composes the front console's name before its line, if all consoles are shown.
    pub(super) fn compose_prefix(&mut self) -> bool {
        let Some(slot) = self.slots.get(usize::from(self.front.0)) else { return false };
        let is_wanted = self.view == View::All && self.front != Console::MONITOR;
        if !is_wanted || self.has_prefix || slot.output.is_empty() {
            return false;
        }
        self.has_prefix = true;
        self.put_name(usize::from(self.front.0));
        true
    }

    pub(super) fn compose_message(&mut self) {
        let is_frame = self.messages.first() == Some(FRAME);
        if !is_frame && self.front != Console::MONITOR {
            self.out.push_all(b"ballast| ");
        }
        while let Some(byte) = self.messages.pop().filter(|&byte| byte != b'\n') {
            if byte != FRAME {
                self.out.push(byte);
            }
        }
        self.out.push_all(if is_frame { frame::END } else { b"\r\n" });
    }

    /// Composes the frames that wait before the first message. Terminals do not show frames, so they may interrupt a line.
    pub(super) fn compose_frames(&mut self) {
        while self.messages.first() == Some(FRAME) && self.out.free() > OTHER_LINE {
            self.compose_message();
        }
    }

    pub(super) fn compose_other_line(&mut self, at: usize) {
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

    /// Erases the front console's line.
    pub(super) fn interrupt_line(&mut self) {
        if self.line_len != 0 && !self.is_interrupted {
            self.is_interrupted = true;
            self.out.push_all(ERASE);
        }
    }

    /// Redraws the front console's line.
    pub(super) fn restore_line(&mut self) {
        self.is_interrupted = false;
        if self.front == Console::MONITOR {
            // At its prompt the monitor redraws its line itself; the line below serves the other cases.
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

    /// Composes a console's name at the start of its line.
    pub(super) fn put_name(&mut self, at: usize) {
        if let Some(slot) = self.slots.get(at) {
            let _ = write!(Text(&mut self.out), "{:.16}| ", slot.name);
        }
    }

    /// Updates the fast path's condition and the UART's notification.
    pub(super) fn refresh(&mut self) {
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

/// A formatter into a ring, which drops text that does not fit.
pub(super) struct Text<'r, 'a>(pub(super) &'r mut Ring<'a>);

impl Write for Text<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0.push(byte);
        }
        Ok(())
    }
}

/// A formatter of one line into a ring, which removes control sequences.
pub(super) struct Plain<'r, 'a> {
    pub(super) ring: &'r mut Ring<'a>,
    pub(super) left: usize,
    pub(super) filter: Filter,
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
