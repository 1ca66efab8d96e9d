//! Time per operation, compared with the crate buddy_system_allocator.

#[path = "workload/mod.rs"]
mod workload;

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use workload::{Ballast, BuddySystem, Frames, Work};

fn measure<F: Frames>(criterion: &mut Criterion, who: &str, name: &str, work: Work, gib: u64) {
    criterion.benchmark_group(name).bench_function(who, |bencher| {
        bencher.iter_custom(|iterations| {
            let mut total = Duration::ZERO;
            let mut left = iterations as usize;
            while left > 0 {
                let count = left.min(work.limit(gib)).min(1 << 19);
                let mut prepared = work.prepare::<F>(gib, count);
                let start = Instant::now();
                work.run(&mut prepared);
                total += start.elapsed();
                left -= count;
            }
            total
        });
    });
}

fn both(criterion: &mut Criterion, name: &str, work: Work, gib: u64) {
    measure::<Ballast>(criterion, "ballast", name, work, gib);
    measure::<BuddySystem>(criterion, "buddy_system_allocator", name, work, gib);
}

fn frames(criterion: &mut Criterion) {
    for order in [0, 3, 9, 12, 18] {
        both(criterion, &format!("pair/order-{order}"), Work::Pair(order), 2);
    }
    both(criterion, "fill/order-0", Work::Fill(0), 2);
    both(criterion, "drain/order-0", Work::Drain(0), 2);
    both(criterion, "drain-shuffled/order-0", Work::DrainShuffled(0), 2);
    both(criterion, "churn/512Ki-free", Work::Churn, 4);
    for gib in [1, 16, 256, 1024] {
        measure::<Ballast>(criterion, "ballast", &format!("pair/{gib}-gib"), Work::Pair(0), gib);
    }
}

fn boot(criterion: &mut Criterion) {
    for gib in [1, 16, 256, 1024] {
        criterion.bench_function(&format!("boot/{gib}-gib"), |bencher| {
            bencher.iter(|| Ballast::new(gib));
        });
    }
}

criterion_group!(benches, frames, boot);
criterion_main!(benches);
