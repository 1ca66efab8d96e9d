//! Who runs when: threads of which one runs at a time, and a search through the orders that there are.
//!
//! A thread goes on until a point where another may run. There the scheduler asks [`Choices`]: at a pause, whether to
//! preempt (as often as the bound allows), and at a wait, who comes next. [`explore`] repeats a run with every
//! combination of answers, or with random ones.

use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex};

use crate::sync::hooks;

/// Waits in a row, by all threads, after which nobody can go on.
const DEADLOCK: u32 = 20_000;

/// The answers of one run.
pub(in super::super) struct Choices {
    /// What was answered and how many answers there were.
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
    /// Threads that are not done.
    alive: Vec<bool>,
    waits: u32,
    choices: Choices,
    is_failed: bool,
}

/// Lets one thread run at a time.
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

    /// Another thread may run now.
    pub(super) fn pause(&self) {
        let Some(me) = NUMBER.get() else { return };
        let mut state = self.state.lock().unwrap();
        state.waits = 0;
        let others: Vec<usize> = (0..state.alive.len()).filter(|&n| n != me && state.alive[n]).collect();
        if state.choices.preemptions == 0 || others.is_empty() {
            return;
        }
        // At random, switching everywhere is as blind as nowhere.
        let stays = state.choices.random.is_some() && state.choices.choose(4) != 0;
        let answer = if stays { 0 } else { state.choices.choose(others.len() + 1) };
        if answer > 0 {
            state.choices.preemptions -= 1;
            self.switch(state, me, others[answer - 1]);
        }
    }

    /// Another thread has to run now: this one waits for it.
    fn wait(&self) {
        let Some(me) = NUMBER.get() else { return };
        let mut state = self.state.lock().unwrap();
        state.waits += 1;
        if state.waits > DEADLOCK {
            state.is_failed = true;
            self.turn.notify_all();
            drop(state);
            panic!("nobody can go on");
        }
        let others: Vec<usize> = (0..state.alive.len()).filter(|&n| n != me && state.alive[n]).collect();
        if others.is_empty() {
            return;
        }
        // In turn: the next one after this. What another order would give, preemption gives.
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

/// How to look through the orders.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Explorer {
    /// Every order with at most this many preemptions, but no more runs than that.
    Every { preemptions: u32, runs: u64 },
    /// This many runs at random, from a seed.
    Random { runs: u64, seed: u64 },
}

/// What one thread does.
pub(in super::super) type Actor<'a, W> = &'a (dyn Fn(&W) + Sync);

/// Runs `actors` over a world that `build` makes, in one order after the other; `check` looks at each
/// world at the end. Yields how many runs there were.
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
