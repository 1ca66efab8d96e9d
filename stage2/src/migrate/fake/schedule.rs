//! Runs threads one at a time, and explores their interleavings.
//!
//! A thread runs up to a point where another may run. There the scheduler asks [`Choices`]: at a pause, whether to
//! preempt (up to the bound), and at a wait, which thread is next. [`explore`] repeats a run with every combination of
//! answers, or with random ones.

use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex};

use crate::sync::hooks;

/// Number of waits in a row, by all threads, that counts as a deadlock.
const DEADLOCK: u32 = 20_000;

/// The choices of one run.
pub(in super::super) struct Choices {
    /// The answers so far, each with the number of options.
    taken: Vec<(usize, usize)>,
    next: usize,
    preemptions: u32,
    random: Option<u64>,
}

impl Choices {
    fn choose(&mut self, options: usize) -> usize {
        if options == 1 {
            return 0;
        }
        if let Some(seed) = &mut self.random {
            // xorshift64*
            *seed ^= *seed >> 12;
            *seed ^= *seed << 25;
            *seed ^= *seed >> 27;
            return (seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % options;
        }
        if self.next == self.taken.len() {
            self.taken.push((0, options));
        }
        let (answer, known) = self.taken[self.next];
        assert_eq!(known, options, "the run is not the same as before");
        self.next += 1;
        answer
    }
}

struct State {
    current: usize,
    /// True for threads that are not done.
    alive: Vec<bool>,
    waits: u32,
    choices: Choices,
    is_failed: bool,
}

/// A scheduler that lets one thread run at a time.
pub(in super::super) struct Scheduler {
    state: Mutex<State>,
    turn: Condvar,
}

thread_local! {
    static NUMBER: std::cell::Cell<Option<usize>> = const { std::cell::Cell::new(None) };
}

impl Scheduler {
    fn new(threads: usize, choices: Choices) -> Self {
        let state = State { current: 0, alive: vec![true; threads], waits: 0, choices, is_failed: false };
        Self { state: Mutex::new(state), turn: Condvar::new() }
    }

    /// Lets another thread run, if the choices say so.
    pub(super) fn pause(&self) {
        let Some(me) = NUMBER.get() else { return };
        let mut state = self.state.lock().unwrap();
        state.waits = 0;
        let others: Vec<usize> = (0..state.alive.len()).filter(|&n| n != me && state.alive[n]).collect();
        if state.choices.preemptions == 0 || others.is_empty() {
            return;
        }
        // At random, switching at every point would find as little as never switching.
        let stays = state.choices.random.is_some() && state.choices.choose(4) != 0;
        let answer = if stays { 0 } else { state.choices.choose(others.len() + 1) };
        if answer > 0 {
            state.choices.preemptions -= 1;
            self.switch(state, me, others[answer - 1]);
        }
    }

    /// Lets another thread run: this one waits for it.
    fn wait(&self) {
        let Some(me) = NUMBER.get() else { return };
        let mut state = self.state.lock().unwrap();
        state.waits += 1;
        if state.waits > DEADLOCK {
            state.is_failed = true;
            self.turn.notify_all();
            drop(state);
            panic!("deadlock");
        }
        let others: Vec<usize> = (0..state.alive.len()).filter(|&n| n != me && state.alive[n]).collect();
        if others.is_empty() {
            return;
        }
        // The next thread in turn. Preemption covers other orders.
        let next = others.iter().copied().find(|&n| n > me).unwrap_or(others[0]);
        self.switch(state, me, next);
    }

    fn switch(&self, mut state: std::sync::MutexGuard<'_, State>, me: usize, next: usize) {
        state.current = next;
        self.turn.notify_all();
        while state.current != me && !state.is_failed {
            state = self.turn.wait(state).unwrap();
        }
        if state.is_failed {
            drop(state);
            panic!("another thread failed");
        }
    }

    fn begin(self: &Arc<Self>, me: usize) {
        NUMBER.set(Some(me));
        let scheduler = self.clone();
        hooks::set_relax(Some(Rc::new(move || scheduler.wait())));
        let mut state = self.state.lock().unwrap();
        while state.current != me && !state.is_failed {
            state = self.turn.wait(state).unwrap();
        }
    }

    fn end(&self, me: usize, is_failed: bool) {
        NUMBER.set(None);
        hooks::set_relax(None);
        let mut state = self.state.lock().unwrap();
        state.alive[me] = false;
        state.is_failed |= is_failed;
        if let Some(next) = (0..state.alive.len()).find(|&n| state.alive[n]) {
            state.current = next;
        }
        self.turn.notify_all();
    }
}

/// A strategy of exploration.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Explorer {
    /// Every order with at most `preemptions` preemptions, but at most `runs` runs.
    Every { preemptions: u32, runs: u64 },
    /// `runs` random runs from a seed.
    Random { runs: u64, seed: u64 },
}

/// The body of a thread.
pub(in super::super) type Actor<'a, W> = &'a (dyn Fn(&W) + Sync);

/// Runs `actors` over a world that `build` makes, in one interleaving after the other. `check` checks each world at the
/// end. Returns the number of runs.
pub(in super::super) fn explore<W: Sync>(
    explorer: Explorer,
    build: impl Fn(Arc<Scheduler>) -> W,
    actors: &[Actor<'_, W>],
    check: impl Fn(&W),
) -> u64 {
    let (mut taken, mut run) = (Vec::new(), 0);
    loop {
        let choices = match explorer {
            Explorer::Every { preemptions, .. } => {
                Choices { taken: std::mem::take(&mut taken), next: 0, preemptions, random: None }
            }
            Explorer::Random { seed, .. } => {
                let seed = (seed + run).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                Choices { taken: Vec::new(), next: 0, preemptions: u32::MAX, random: Some(seed) }
            }
        };
        let scheduler = Arc::new(Scheduler::new(actors.len(), choices));
        let world = build(scheduler.clone());
        let is_failed = std::thread::scope(|scope| {
            let threads: Vec<_> = actors
                .iter()
                .enumerate()
                .map(|(me, actor)| {
                    let (scheduler, world) = (&scheduler, &world);
                    scope.spawn(move || {
                        scheduler.begin(me);
                        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| actor(world)));
                        scheduler.end(me, result.is_err());
                        result.is_err()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).fold(false, |any, failed| any | failed)
        });
        run += 1;
        assert!(!is_failed, "run {run} failed");
        check(&world);
        drop(world);
        let choices = Arc::into_inner(scheduler).unwrap().state.into_inner().unwrap().choices;
        match explorer {
            Explorer::Random { runs, .. } if run < runs => {}
            Explorer::Every { runs, .. } if run < runs => {
                taken = choices.taken;
                while taken.last().is_some_and(|(answer, options)| answer + 1 == *options) {
                    taken.pop();
                }
                let Some(last) = taken.last_mut() else { return run };
                last.0 += 1;
            }
            _ => return run,
        }
    }
}
