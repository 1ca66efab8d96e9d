//! Handling of events and global errors.

use super::access::{Memory, Registers};
use super::command::Command;
use super::event::{Action, Event};
use super::global_error::GlobalErrors;
use super::registers::{
    GERROR, GERROR_ALL, GERROR_CMDQ, GERROR_SFM, GERRORN, IRQ_CTRL, IRQ_CTRLACK, IRQ_GERROR,
};
use super::stream::StreamState;
use super::{Failure, Smmu, start};

/// Leaves of the stream table that are kept for streams to attach.
const RESERVED_LEAVES: usize = 24;

impl<R: Registers, M: Memory> Smmu<R, M> {
    /// Takes the events that are in the queue, at most as many as the queue holds, and tells those that are within the limits.
    /// A stream that exceeds its limit is cut off. Returns the number of events.
    pub(crate) fn take_events(&mut self, tell: &mut dyn FnMut(&Event)) -> u32 {
        let mut count = 0;
        while count < self.events.capacity() {
            let Some(words) = self.events.take(&self.port) else { break };
            count += 1;
            self.judge(Event::decode(words, self.port.memory.now_ns()), tell);
        }
        if self.events.acknowledge_overflow(&self.port) {
            self.counters.overflows += 1;
        }
        self.has_more_events = count == self.events.capacity();
        if count == 0 && self.is_masked && !self.unassigned.is_within(self.port.memory.now_ns()) {
            self.signal_events(true);
            // One that came before the interrupt was on signals nothing.
            self.has_more_events = !self.events.is_empty(&self.port);
        }
        count
    }

    fn judge(&mut self, mut event: Event, tell: &mut dyn FnMut(&Event)) {
        let now = event.time_ns;
        self.counters.events += 1;
        let Some(stream) = self.find(event.stream) else {
            self.counters.unassigned_events += 1;
            if self.unassigned.exceeds(now) {
                self.counters.suppressed_events += 1;
                self.silence(event.stream);
            } else {
                tell(&event);
            }
            return;
        };
        event.action = Action::Counted;
        stream.event_count += 1;
        let is_translating = stream.state == StreamState::Translating;
        if is_translating && stream.limiter.exceeds(now) {
            event.action = Action::CutOff;
        }
        stream.last_event = Some(event);
        if !is_translating {
            self.counters.suppressed_events += 1;
            return;
        }
        if event.action == Action::CutOff {
            // A failure is recorded, and shows in the stream's state.
            let _ = self.cut_off(event.stream);
        }
        tell(&event);
    }

    /// Stops events of a stream that is not attached: it gets an entry, which aborts without events. If it cannot have one, the
    /// event interrupt is turned off for some time.
    fn silence(&mut self, id: u32) {
        if self.usable().is_err() || self.is_masked {
            return;
        }
        if self.table.entry(id).is_none()
            && self.table.free_leaf_count() > RESERVED_LEAVES
            && self.table.prepare(&self.port, id).is_ok()
        {
            let _ = self.run(&[Command::invalidate_entry(id, false)]);
        } else {
            self.signal_events(false);
        }
    }

    /// Turns the event interrupt on or off.
    fn signal_events(&mut self, is_signalled: bool) {
        let value = if is_signalled { start::INTERRUPTS } else { IRQ_GERROR };
        match self.port.control("IRQ_CTRL", IRQ_CTRL, IRQ_CTRLACK, value) {
            Ok(()) => self.is_masked = !is_signalled,
            Err(failure) => {
                self.fail(failure);
            }
        }
    }

    /// Acknowledges global errors and returns them.
    pub(crate) fn take_errors(&mut self) -> GlobalErrors {
        let active = (self.port.registers.read32(GERROR) ^ self.port.registers.read32(GERRORN)) & GERROR_ALL;
        if active == 0 {
            return GlobalErrors::default();
        }
        self.counters.errors += 1;
        if active & GERROR_CMDQ != 0
            && let Err(failure) = self.commands.recover_idle(&self.port)
        {
            self.fail(failure);
        }
        // Service failure is not acknowledged: it does not end.
        let acknowledged = self.port.registers.read32(GERRORN) ^ active & !(GERROR_CMDQ | GERROR_SFM);
        self.port.registers.write32(GERRORN, acknowledged);
        if active & GERROR_SFM != 0 {
            self.fail(Failure::Service);
        }
        GlobalErrors(active)
    }
}
