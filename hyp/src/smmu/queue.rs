//! The command queue and the event queue (IHI 0070, "Queues").
//!
//! An index has the bits of an entry's number and, above them, a bit that toggles with each wrap.

use super::access::{Memory, Port, Registers};
use super::command::Command;
use super::error::{Error, Failure};
use super::registers::{
    BASE_ALLOCATE, CMDQ_BASE, CMDQ_CONS, CMDQ_PROD, EVENTQ_BASE, EVENTQ_CONS, EVENTQ_PROD, GERROR,
    GERROR_CMDQ, GERRORN, OVERFLOW,
};

/// log2 of the most commands that Ballast's queue holds: a page.
const COMMAND_BITS: u8 = 8;
/// log2 of the most events that Ballast's queue holds: two pages.
const EVENT_BITS: u8 = 8;
/// Most errors of the command queue that one batch recovers from.
const RETRY_LIMIT: u8 = 4;

/// Place and size of a queue.
#[derive(Clone, Copy, Debug)]
struct Ring {
    base: u64,
    bits: u8,
    order: u8,
}

impl Ring {
    fn mask(self) -> u32 {
        (2 << self.bits) - 1
    }

    /// Returns the number of entries from index `from` to index `to`.
    fn count(self, from: u32, to: u32) -> u32 {
        to.wrapping_sub(from) & self.mask()
    }

    fn entry(self, index: u32, size: u64) -> u64 {
        self.base + u64::from(index & (self.mask() >> 1)) * size
    }

    fn register(self) -> u64 {
        BASE_ALLOCATE | self.base | u64::from(self.bits)
    }
}

/// The command queue. All batches end with CMD_SYNC, and none is left in the queue.
#[derive(Debug)]
pub(super) struct CommandQueue {
    ring: Ring,
    producer: u32,
}

impl CommandQueue {
    /// Allocates a queue.
    pub(super) fn new<R: Registers, M: Memory>(port: &Port<R, M>, bits: u8) -> Result<Self, Error> {
        let ring = Ring { base: port.allocate(0)?, bits: bits.min(COMMAND_BITS), order: 0 };
        Ok(Self { ring, producer: 0 })
    }

    /// Frees a queue that is not enabled.
    pub(super) fn free<R: Registers, M: Memory>(self, port: &Port<R, M>) {
        port.free(self.ring.base, self.ring.order);
    }

    /// Writes the queue's registers, while CR0.CMDQEN is 0.
    pub(super) fn program<R: Registers, M: Memory>(&self, port: &Port<R, M>) {
        port.registers.write64(CMDQ_BASE, self.ring.register());
        port.registers.write32(CMDQ_PROD, 0);
        port.registers.write32(CMDQ_CONS, 0);
    }

    /// Runs `commands` and waits until they are complete. A batch that the SMMU rejects is tried once more.
    pub(super) fn run<R: Registers, M: Memory>(
        &mut self,
        port: &Port<R, M>,
        commands: &[Command],
    ) -> Result<(), Failure> {
        match self.attempt(port, commands) {
            Err(Failure::Illegal(_)) => self.attempt(port, commands),
            result => result,
        }
    }

    fn attempt<R: Registers, M: Memory>(
        &mut self,
        port: &Port<R, M>,
        commands: &[Command],
    ) -> Result<(), Failure> {
        let (ring, mut retries, mut rejected) = (self.ring, 0, None);
        for command in commands.iter().chain([&Command::SYNC]) {
            let (producer, mut fault) = (self.producer, None);
            let has_room = |consumer| ring.count(consumer, producer) < 1 << ring.bits;
            if !has_room(port.registers.read32(CMDQ_CONS)) {
                self.publish(port);
                let has_come = port.wait(|| {
                    fault = self.recover(port, &mut retries, &mut rejected).err();
                    fault.is_some() || has_room(port.registers.read32(CMDQ_CONS))
                });
                if let Some(failure) = fault.or((!has_come).then_some(Failure::QueueFull)) {
                    return Err(failure);
                }
            }
            port.write_words(ring.entry(self.producer, 16), &command.0);
            self.producer = (self.producer + 1) & ring.mask();
        }
        self.publish(port);
        let mut fault = None;
        let is_done = port.wait(|| {
            fault = self.recover(port, &mut retries, &mut rejected).err();
            fault.is_some() || ring.count(port.registers.read32(CMDQ_CONS), self.producer) == 0
        });
        let failure = fault.or((!is_done).then_some(Failure::SyncTimeout)).or(rejected);
        failure.map_or(Ok(()), Err)
    }

    /// Gives the commands to the SMMU, which must see them before the index.
    fn publish<R: Registers, M: Memory>(&self, port: &Port<R, M>) {
        port.memory.barrier();
        port.registers.write32(CMDQ_PROD, self.producer);
    }

    /// Handles an error of the queue, if there is one: the SMMU has stopped at the command that CMDQ_CONS names and continues
    /// there after the acknowledgement (IHI 0070, "Command queue errors").
    fn recover<R: Registers, M: Memory>(
        &self,
        port: &Port<R, M>,
        retries: &mut u8,
        rejected: &mut Option<Failure>,
    ) -> Result<(), Failure> {
        let acknowledged = port.registers.read32(GERRORN);
        if (port.registers.read32(GERROR) ^ acknowledged) & GERROR_CMDQ == 0 {
            return Ok(());
        }
        let consumer = port.registers.read32(CMDQ_CONS);
        let code = (consumer >> 24 & 0x7f) as u8;
        *retries += 1;
        if *retries > RETRY_LIMIT {
            return Err(Failure::Queue(code));
        }
        match code {
            1 => {
                let at = self.ring.entry(consumer, 16);
                let opcode = Command([port.memory.read64(at), 0]).opcode();
                rejected.get_or_insert(Failure::Illegal(opcode));
                port.write_words(at, &Command::SYNC.0);
            }
            // CERROR_ABT, and CERROR_ATC_INV_SYNC, which needs an ATC that Ballast never enables: again from the same command.
            2 | 3 => {}
            code => return Err(Failure::Queue(code)),
        }
        port.memory.barrier();
        port.registers.write32(GERRORN, acknowledged ^ GERROR_CMDQ);
        Ok(())
    }

    /// Handles an error that came outside a batch.
    pub(super) fn recover_idle<R: Registers, M: Memory>(&self, port: &Port<R, M>) -> Result<(), Failure> {
        self.recover(port, &mut 0, &mut None)
    }
}

/// The event queue.
#[derive(Debug)]
pub(super) struct EventQueue {
    ring: Ring,
    consumer: u32,
    /// EVENTQ_CONS.OVACKFLG.
    overflow: u32,
}

impl EventQueue {
    /// Allocates a queue.
    pub(super) fn new<R: Registers, M: Memory>(port: &Port<R, M>, bits: u8) -> Result<Self, Error> {
        let ring = Ring { base: port.allocate(1)?, bits: bits.min(EVENT_BITS), order: 1 };
        Ok(Self { ring, consumer: 0, overflow: 0 })
    }

    /// Frees a queue that is not enabled.
    pub(super) fn free<R: Registers, M: Memory>(self, port: &Port<R, M>) {
        port.free(self.ring.base, self.ring.order);
    }

    /// Writes the queue's registers, while CR0.EVENTQEN is 0.
    pub(super) fn program<R: Registers, M: Memory>(&self, port: &Port<R, M>) {
        port.registers.write64(EVENTQ_BASE, self.ring.register());
        port.registers.write32(EVENTQ_PROD, 0);
        port.registers.write32(EVENTQ_CONS, 0);
    }

    /// Returns the most events that the queue holds.
    pub(super) fn capacity(&self) -> u32 {
        1 << self.ring.bits
    }

    /// Returns true if no event is in the queue.
    pub(super) fn is_empty<R: Registers, M: Memory>(&self, port: &Port<R, M>) -> bool {
        self.ring.count(self.consumer, port.registers.read32(EVENTQ_PROD)) == 0
    }

    /// Takes the oldest event.
    pub(super) fn take<R: Registers, M: Memory>(&mut self, port: &Port<R, M>) -> Option<[u64; 4]> {
        if self.is_empty(port) {
            return None;
        }
        let event = port.read_fresh(self.ring.entry(self.consumer, 32));
        self.consumer = (self.consumer + 1) & self.ring.mask();
        // The entry must be read before the SMMU may write it again.
        port.memory.barrier();
        port.registers.write32(EVENTQ_CONS, self.overflow | self.consumer);
        Some(event)
    }

    /// Acknowledges an overflow. Returns true if there was one: events were lost.
    pub(super) fn acknowledge_overflow<R: Registers, M: Memory>(&mut self, port: &Port<R, M>) -> bool {
        let overflow = port.registers.read32(EVENTQ_PROD) & OVERFLOW;
        let has_overflowed = overflow != self.overflow;
        if has_overflowed {
            self.overflow = overflow;
            port.registers.write32(EVENTQ_CONS, self.overflow | self.consumer);
        }
        has_overflowed
    }
}
