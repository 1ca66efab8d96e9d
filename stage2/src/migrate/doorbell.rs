//! Who knows that there is work.
//!
//! Work is *announced*. A CPU on which a guest runs looks at the news at each tick of its timer, for as long as it is
//! *engaged*; one that is not has to be told, by a kick, which costs its guest an exit. So that no announcement is missed,
//! each side writes first and then reads: who announces counts and then asks who is engaged; who stops being engaged says
//! so and then asks once more whether there is work (all sequentially consistent). An announcement that comes in between
//! is seen by the one, or finds the other to be told.
//!
//! So a CPU is told at most once in the time between two of its ticks, however often somebody announces.

use crate::sync::{Counter, Flag, Ordering};

/// Whether there is work. All zero bytes at first: there is none.
pub struct News {
    /// How often work was announced.
    announced: Counter,
    /// What that was before the step that found nothing to do.
    done: Counter,
}

/// Whether a CPU looks at the news by itself. Not at first.
pub struct Engaged(Flag);

/// How far the news had come.
#[derive(Clone, Copy)]
pub struct Mark(u32);

impl Default for News {
    fn default() -> Self {
        Self::new()
    }
}

impl News {
    /// Makes news of no work.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self { announced: Counter::new(0), done: Counter::new(0) }
    }

    /// Makes news of no work.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self { announced: Counter::new(0), done: Counter::new(0) }
    }

    /// There is work. Then tell those that are not engaged.
    pub fn announce(&self) {
        self.announced.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether there may be work.
    pub fn is_there_work(&self) -> bool {
        self.announced.load(Ordering::SeqCst) != self.done.load(Ordering::SeqCst)
    }

    /// To be taken before a step that may find nothing to do.
    pub fn mark(&self) -> Mark {
        Mark(self.announced.load(Ordering::SeqCst))
    }

    /// A step that began at `mark` found nothing to do.
    pub fn finish(&self, mark: Mark) {
        self.done.store(mark.0, Ordering::SeqCst);
    }
}

impl Default for Engaged {
    fn default() -> Self {
        Self::new()
    }
}

impl Engaged {
    /// Makes the word of a CPU that is not engaged.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self(Flag::new(false))
    }

    /// Makes the word of a CPU that is not engaged.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self(Flag::new(false))
    }

    /// Whether the CPU will look at the news without being told.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// The CPU no longer looks at the news by itself.
    pub fn end(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    /// Whether there may be work. The CPU is engaged then, and has to see to it that it looks again soon; it is not else.
    pub fn look(&self, news: &News) -> bool {
        if !news.is_there_work() {
            self.end();
            if !news.is_there_work() {
                return false;
            }
        }
        self.0.store(true, Ordering::SeqCst);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn a_cpu_is_engaged_as_long_as_there_is_work() {
        let (news, engaged) = (News::new(), Engaged::new());
        assert!(!engaged.look(&news) && !engaged.get());
        news.announce();
        assert!(news.is_there_work() && engaged.look(&news) && engaged.get());
        let mark = news.mark();
        news.announce();
        news.finish(mark);
        assert!(engaged.look(&news), "what was announced during the step is not done");
        news.finish(news.mark());
        assert!(engaged.get(), "until it looks");
        assert!(!engaged.look(&news) && !engaged.get());
    }

    #[test]
    fn no_announcement_is_missed() {
        const ROUNDS: u32 = if cfg!(miri) { 30 } else { 100_000 };
        let (news, engaged) = (News::new(), Engaged::new());
        // What was announced, and seen; kicks sent and not taken yet.
        let (seen, kicks, kick_count) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    news.announce();
                    if !engaged.get() {
                        kicks.store(1, Ordering::SeqCst);
                        kick_count.fetch_add(1, Ordering::Relaxed);
                    }
                    // The next only once this one was seen: a missed one is waited for in vain.
                    let mut spins = 0_u64;
                    while seen.load(Ordering::SeqCst) < round {
                        spins += 1;
                        assert!(spins < 2_000_000_000, "round {round}");
                        std::hint::spin_loop();
                        if spins.is_multiple_of(64) {
                            std::thread::yield_now();
                        }
                    }
                }
            });
            scope.spawn(|| {
                let mut is_ticking = false;
                while seen.load(Ordering::SeqCst) < ROUNDS {
                    // It looks at a tick, or when it is told.
                    if !is_ticking && kicks.swap(0, Ordering::SeqCst) == 0 {
                        std::thread::yield_now();
                        continue;
                    }
                    is_ticking = engaged.look(&news);
                    if is_ticking {
                        let mark = news.mark();
                        news.finish(mark);
                        seen.store(mark.0, Ordering::SeqCst);
                    }
                }
            });
        });
        assert!(kick_count.load(Ordering::Relaxed) <= ROUNDS);
    }
}
