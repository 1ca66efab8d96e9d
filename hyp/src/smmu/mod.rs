//! A driver of an SMMUv3 (Arm System Memory Management Unit Architecture Specification, IHI 0070), pure: registers and memory
//! are behind the traits [`Registers`] and [`Memory`], so it runs on a PC.
//!
//! A *stream* is a device's accesses, by StreamID. A *window* is a range of addresses of devices and the memory behind it.
//! Every stream aborts unless it is attached to a window.
//!
//! The interface, in the order of a machine's life:
//! - [`Smmu::new`] takes an SMMU from any state to one that aborts every stream, with queues and interrupts on.
//! - [`Smmu::make_window`] builds a window's table; [`Smmu::attach`] attaches a stream to it; [`Smmu::detach`] makes the stream
//!   abort again and returns when no access of it is in flight; [`Smmu::drop_window`] frees the table.
//! - [`Smmu::take_events`] is called upon the event interrupt and, while [`Smmu::is_polled`], from time to time. It cuts off
//!   streams that flood. [`Smmu::take_errors`] is called upon the error interrupt. Both interrupts are edges; one that is
//!   combined calls both.
//! - [`Smmu::streams`], [`Smmu::counters`], [`Smmu::memory_bytes`], [`Smmu::check`] and [`Smmu::failure`] tell the operator.
//!
//! An SMMU that does not answer *fails*, forever. If it can be turned off with all streams aborting, it is then *closed*
//! ([`Smmu::is_closed`]). If not, the state of its streams is unknown, and memory of its windows must not change hands.
//!
//! Order: tables are written before the barrier that precedes the command index. An entry changes by one 64-bit store of word 0
//! between translating and aborting; its other words change only while it aborts and after CMD_CFGI_STE and CMD_SYNC have
//! ended all fetches of it (IHI 0070, "Configuration structures and configuration invalidation completion").
//!
//! CMD_SYNC ends each batch of at most two commands, and CMDQ_CONS is polled: neither SEV nor MSIs are needed, which some SMMUs
//! lack or have errata about. Quirks that are not handled: page 1 at page 0 (Cavium ThunderX2). CMD_PREFETCH_*, ATS, stalls,
//! HTTU and broadcast TLB maintenance are never used, nor are errata of these met.

mod access;
mod check;
mod command;
mod entry;
mod error;
mod event;
#[cfg(test)]
mod fake;
mod faults;
mod features;
mod global_error;
mod queue;
mod registers;
mod start;
mod stream;
mod stream_table;
#[cfg(test)]
mod tests;
mod window;

pub(crate) use access::{Memory, Registers};
pub(crate) use error::{Error, Failure};
pub(crate) use event::{Action, Event};
pub(crate) use features::Stage;
pub(crate) use stream::{Counters, Stream, StreamState, WindowId};
pub(crate) use window::Window;

use access::Port;
use alloc::vec::Vec;
use command::Command;
use core::cell::Cell;
use entry::{ABORT, STE_WORDS};
use event::Limiter;
use features::Features;
use queue::{CommandQueue, EventQueue};
use registers::{CR0, CR0_SMMUEN, CR0ACK, IRQ_CTRL};
use stream_table::StreamTable;
use window::WindowTable;

/// Most windows of an SMMU.
const WINDOW_LIMIT: usize = 16;
/// Most streams that are attached to an SMMU.
const STREAM_LIMIT: usize = 128;

/// Properties of an SMMU from the host's tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// True if the node has `dma-coherent`.
    pub(crate) is_coherent: bool,
    /// Largest StreamID that will be attached.
    pub(crate) largest_stream: u32,
}

/// An SMMU.
#[derive(Debug)]
pub(crate) struct Smmu<R, M> {
    port: Port<R, M>,
    features: Features,
    table: StreamTable,
    commands: CommandQueue,
    events: EventQueue,
    windows: [Option<WindowTable>; WINDOW_LIMIT],
    /// On the heap: this may be moved on a small stack.
    streams: Vec<Stream>,
    failure: Option<Failure>,
    is_closed: bool,
    /// GBPA.ABORT is set: streams abort while the SMMU is off.
    aborts_when_off: bool,
    /// The event interrupt is off because of events of streams that are not attached.
    is_masked: bool,
    /// Events were left in the queue, which signals only when it stops being empty.
    has_more_events: bool,
    unassigned: Limiter,
    counters: Counters,
}

impl<R: Registers, M: Memory> Smmu<R, M> {
    /// Takes an SMMU from any state to one that aborts every stream.
    ///
    /// # Errors
    ///
    /// A feature that is missing, memory, or an SMMU that does not answer. Memory that it may still access is never freed.
    pub(crate) fn new(registers: R, memory: M, setup: Setup) -> Result<Self, Error> {
        let features = Features::read(&registers);
        let is_coherent = setup.is_coherent && features.is_ok_and(|features| features.is_coherent);
        let port = Port { registers, memory, is_coherent, bytes: Cell::new(0) };
        let aborts_when_off = start::quiet(&port).map_err(Error::Failed)?;
        // An SMMU that cannot be used stays off, with all its streams aborting.
        let features = features?;
        let table = StreamTable::new(&port, &features, setup.largest_stream)?;
        let (mut commands, events) = match Self::queues(&port, &features) {
            Ok(queues) => queues,
            Err(error) => {
                table.free(&port);
                return Err(error);
            }
        };
        if let Err(failure) = start::enable(&port, &features, &table, &mut commands, &events) {
            if start::quiet(&port).is_ok() {
                table.free(&port);
                commands.free(&port);
                events.free(&port);
            }
            return Err(Error::Failed(failure));
        }
        Ok(Self {
            port,
            features,
            table,
            commands,
            events,
            windows: [const { None }; WINDOW_LIMIT],
            streams: Vec::new(),
            failure: None,
            is_closed: false,
            aborts_when_off,
            is_masked: false,
            has_more_events: false,
            unassigned: Limiter::default(),
            counters: Counters::default(),
        })
    }

    fn queues(port: &Port<R, M>, features: &Features) -> Result<(CommandQueue, EventQueue), Error> {
        let commands = CommandQueue::new(port, features.command_bits)?;
        match EventQueue::new(port, features.event_bits) {
            Ok(events) => Ok((commands, events)),
            Err(error) => {
                commands.free(port);
                Err(error)
            }
        }
    }

    /// Builds the table of a window.
    pub(crate) fn make_window(&mut self, window: Window) -> Result<WindowId, Error> {
        self.usable()?;
        let free = (0..).zip(&mut self.windows).find(|(_, place)| place.is_none());
        let (index, place) = free.ok_or(Error::WindowLimit)?;
        *place = Some(WindowTable::new(&self.port, &self.features, window, index)?);
        Ok(WindowId(index))
    }

    /// Frees the table of a window that no stream is attached to.
    pub(crate) fn drop_window(&mut self, id: WindowId) -> Result<(), Error> {
        self.usable()?;
        if self.streams.iter().any(|stream| stream.window == id) {
            return Err(Error::WindowInUse);
        }
        let invalidation = self.invalidation(id).ok_or(Error::NoWindow)?;
        self.run(&invalidation)?;
        if let Some(table) = self.windows.get_mut(usize::from(id.0)).and_then(Option::take) {
            table.free(&self.port);
        }
        Ok(())
    }

    /// Checks that a stream can be attached: that its StreamID is in the stream table (IDR1.SIDSIZE).
    pub(crate) fn reach(&self, id: u32) -> Result<(), Error> {
        self.table.reach(id)
    }

    /// Attaches a stream to a window: its device reaches the window's memory from now on.
    ///
    /// # Errors
    ///
    /// After any error but [`Error::Attached`] and [`Error::Failed`], the stream aborts.
    pub(crate) fn attach(&mut self, id: u32, is_coherent: bool, window: WindowId) -> Result<(), Error> {
        self.usable()?;
        if self.find(id).is_some() {
            return Err(Error::Attached(id));
        }
        let stream = Stream {
            id,
            window,
            is_coherent,
            state: StreamState::CutOff,
            event_count: 0,
            last_event: None,
            limiter: Limiter::default(),
        };
        let words = self.translating(&stream).ok_or(Error::NoWindow)?;
        if self.streams.len() >= STREAM_LIMIT {
            return Err(Error::StreamLimit);
        }
        self.streams.try_reserve(1).map_err(|_| Error::Memory { bytes: size_of::<Stream>() as u64 })?;
        let (entry, is_new) = self.table.prepare(&self.port, id)?;
        self.streams.push(stream);
        // The entry aborts and its other words are ignored. Once no fetch is in flight that may have read their old values,
        // word 0 makes them count.
        self.port.write_words(entry + 8, &words[1..]);
        self.run(&[Command::invalidate_entry(id, !is_new)])?;
        self.port.write64(entry, words[0]);
        self.run(&[Command::invalidate_entry(id, true)])?;
        if let Some(stream) = self.find(id) {
            stream.state = StreamState::Translating;
        }
        Ok(())
    }

    /// Makes a stream abort and forgets it. When this returns, none of its accesses is in flight.
    ///
    /// # Errors
    ///
    /// After [`Error::Failed`] the stream is known to abort only if the SMMU [is closed](Self::is_closed).
    pub(crate) fn detach(&mut self, id: u32) -> Result<(), Error> {
        self.usable()?;
        self.abort(id)?;
        self.streams.retain(|stream| stream.id != id);
        Ok(())
    }

    /// Makes a stream abort without events until it is detached. Errors are those of [`detach`](Self::detach).
    pub(crate) fn cut_off(&mut self, id: u32) -> Result<(), Error> {
        self.usable()?;
        self.abort(id)?;
        self.counters.cut_offs += 1;
        Ok(())
    }

    fn abort(&mut self, id: u32) -> Result<(), Error> {
        let stream = *self.find(id).ok_or(Error::NotAttached(id))?;
        let entry = self.table.entry(id).ok_or(Error::NotAttached(id))?;
        self.port.write64(entry, ABORT);
        self.run(&[Command::invalidate_entry(id, true)])?;
        // CMD_SYNC waits for accesses in flight that use translations which were invalidated before it.
        let invalidation = self.invalidation(stream.window).ok_or(Error::NoWindow)?;
        self.run(&invalidation)?;
        self.port.write_words(entry + 8, &[0; STE_WORDS - 1]);
        self.port.memory.barrier();
        if let Some(stream) = self.find(id) {
            stream.state = StreamState::CutOff;
        }
        Ok(())
    }

    /// Returns the reason if the SMMU failed.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// Returns true if the SMMU failed and was turned off with all its streams aborting.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Returns true if streams abort, instead of bypassing the SMMU, while it is off.
    pub(crate) fn aborts_when_off(&self) -> bool {
        self.aborts_when_off
    }

    /// Returns true while events may come or be left without an interrupt, so that [`take_events`](Self::take_events) must be
    /// called from time to time.
    pub(crate) fn is_polled(&self) -> bool {
        self.failure.is_none() && (self.is_masked || self.has_more_events)
    }

    /// Returns the stage of translation that windows use.
    pub(crate) fn stage(&self) -> Stage {
        self.features.stage
    }

    /// Returns the attached streams.
    pub(crate) fn streams(&self) -> &[Stream] {
        &self.streams
    }

    /// Returns the counts.
    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    /// Returns the bytes of tables and queues.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.port.bytes.get()
    }

    fn usable(&self) -> Result<(), Error> {
        self.failure.map_or(Ok(()), |failure| Err(Error::Failed(failure)))
    }

    fn find(&mut self, id: u32) -> Option<&mut Stream> {
        self.streams.iter_mut().find(|stream| stream.id == id)
    }

    fn window(&self, id: WindowId) -> Option<&WindowTable> {
        self.windows.get(usize::from(id.0))?.as_ref()
    }

    /// Returns the entry that makes a stream translate.
    fn translating(&self, stream: &Stream) -> Option<[u64; STE_WORDS]> {
        let target = self.window(stream.window)?.target(stream.is_coherent);
        Some(entry::stream(&self.features, target, self.port.is_coherent, stream.is_coherent))
    }

    /// Returns the commands that drop a window's translations.
    fn invalidation(&self, id: WindowId) -> Option<heapless::Vec<Command, 2>> {
        let window = self.window(id)?;
        Some(match self.features.stage {
            Stage::One => window.asids().into_iter().map(Command::invalidate_asid).collect(),
            Stage::Two => [Command::invalidate_vmid(window.vmid())].into_iter().collect(),
        })
    }

    fn run(&mut self, commands: &[Command]) -> Result<(), Error> {
        self.commands.run(&self.port, commands).map_err(|failure| self.fail(failure))
    }

    /// Records a failure, and closes the SMMU if it can be.
    fn fail(&mut self, failure: Failure) -> Error {
        if let Some(first) = self.failure {
            return Error::Failed(first);
        }
        self.failure = Some(failure);
        // Nobody limits its events any more. Not acknowledged: it may not answer.
        self.port.registers.write32(IRQ_CTRL, 0);
        self.is_masked = false;
        for stream in &self.streams {
            if let Some(entry) = self.table.entry(stream.id) {
                self.port.write64(entry, ABORT);
            }
        }
        self.is_closed = self.aborts_when_off
            && self.port.control("CR0", CR0, CR0ACK, start::enabled(&self.features) & !CR0_SMMUEN).is_ok();
        let state = if self.is_closed { StreamState::Closed } else { StreamState::Unknown };
        self.streams.iter_mut().for_each(|stream| stream.state = state);
        Error::Failed(failure)
    }
}
