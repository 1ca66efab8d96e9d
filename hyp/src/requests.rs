//! Requests between CPUs: a word of bits for each CPU, and a kick that announces a new bit.
//!
//! The requesting CPU sets the bit, executes a DSB and sends the kick. The other CPU acknowledges the kick, executes a DSB and
//! reads the word. So it sees every bit that was set before the kick (`interleavings`); a later one comes with another kick.

use stage2::sync::{Counter, Ordering};

/// A request to a CPU.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Request {
    /// Check the vCPU that owns the CPU: it may have been turned on, or its guest must leave.
    Look = 1 << 1,
    /// Run the monitor.
    Monitor = 1 << 2,
    /// Stop permanently: another CPU had a fatal error.
    Halt = 1 << 3,
    /// Follow a change of event recording.
    Trace = 1 << 4,
}

/// The pending requests to one CPU.
pub(crate) struct Requests(Counter);

impl Default for Requests {
    fn default() -> Self {
        Self::new()
    }
}

impl Requests {
    /// Creates a word without requests.
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Self {
        Self(Counter::new(0))
    }

    /// Creates a word without requests.
    #[cfg(loom)]
    pub(crate) fn new() -> Self {
        Self(Counter::new(0))
    }

    /// Adds a request. Returns true if it was not already pending: the caller must then kick the CPU. Otherwise a kick is on its
    /// way, and a CPU that takes the request before it reads data sees everything that was written before this call.
    pub(crate) fn add(&self, request: Request) -> bool {
        self.0.fetch_or(request as u32, Ordering::AcqRel) & request as u32 == 0
    }

    /// Takes one kind of request. Returns true if it was pending.
    pub(crate) fn take(&self, request: Request) -> bool {
        self.0.fetch_and(!(request as u32), Ordering::AcqRel) & request as u32 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_request_is_taken_once() {
        let requests = Requests::new();
        assert!(requests.add(Request::Look) && !requests.add(Request::Look) && requests.add(Request::Trace));
        assert!(!requests.take(Request::Monitor));
        assert!(
            requests.take(Request::Look) && !requests.take(Request::Look) && requests.take(Request::Trace)
        );
        assert!(requests.add(Request::Look));
    }
}
