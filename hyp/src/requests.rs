//! What CPUs ask of each other: a word of bits for each, and the kick that announces a new one.
//!
//! Who asks sets the bit, executes a DSB and sends the kick. Who is kicked acknowledges it, executes a DSB and looks at
//! the word. So a bit that was set before the kick is seen after it (`interleavings`); one that is set later brings a
//! kick of its own.

use stage2::sync::{Counter, Ordering};

/// Something that a CPU is asked to do when it is kicked.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Request {
    /// Look at the vCPU that owns the CPU: it may have been turned on, or its guest must leave.
    Look = 1 << 1,
    /// Run the monitor.
    Monitor = 1 << 2,
    /// Stop for ever: another CPU met a fatal error.
    Halt = 1 << 3,
    /// Recording of events was turned on or off.
    Trace = 1 << 4,
}

/// The requests to one CPU.
pub struct Requests(Counter);

impl Default for Requests {
    fn default() -> Self {
        Self::new()
    }
}

impl Requests {
    /// Makes a word without requests.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self(Counter::new(0))
    }

    /// Makes a word without requests.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self(Counter::new(0))
    }

    /// Adds a request. Returns whether it was not there already: then the CPU has to be kicked. Else its kick is under way,
    /// and if the CPU takes the request in front of what it then looks at, it sees what was written before this call.
    pub fn add(&self, request: Request) -> bool {
        self.0.fetch_or(request as u32, Ordering::AcqRel) & request as u32 == 0
    }

    /// Takes one kind of request. Returns whether it was there.
    pub fn take(&self, request: Request) -> bool {
        self.0.fetch_and(!(request as u32), Ordering::AcqRel) & request as u32 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_taken_once_and_kinds_are_apart() {
        let requests = Requests::new();
        assert!(requests.add(Request::Look) && !requests.add(Request::Look) && requests.add(Request::Trace));
        assert!(!requests.take(Request::Monitor));
        assert!(
            requests.take(Request::Look) && !requests.take(Request::Look) && requests.take(Request::Trace)
        );
        assert!(requests.add(Request::Look));
    }
}
