//! Something fails at each step of a claim: afterwards all is as it was, or the claim got there by another way.

use super::machine::Step2Fail;
use super::*;

#[test]
fn a_fault_at_any_step_leaves_the_state_of_before_or_of_after() {
    for order in [0, 9] {
        for step in [Step2Fail::Isolate, Step2Fail::Take, Step2Fail::Show, Step2Fail::Allocate] {
            for after in [0, 1, 2, 3, 7] {
                let (machine, pool) = lent(order, 16 * MIB);
                let before = machine.picture();
                machine.soil.fails.set(Some((step, after)));
                let report = machine.claim(OPERATOR, pool, Wish::of_size(14 * MIB));
                machine.soil.fails.set(None);
                match report.state {
                    State::Granted => {
                        assert_eq!(report.range.bytes(), 14 * MIB);
                        machine.release(OPERATOR, pool, report.range);
                    }
                    State::Failed => assert_ne!(report.blocker.cause, Cause::Nothing),
                    other => panic!("{other:?} after {step:?} {after}"),
                }
                assert_eq!(machine.picture(), before, "{step:?} {after}");
                // Nothing stays behind: the next claim is granted.
                machine.granted(OPERATOR, pool, Wish::of_size(16 * MIB));
            }
        }
    }
}

#[test]
fn an_exact_claim_whose_interior_fails_is_undone_in_order() {
    let (machine, pool) = lent(9, 16 * MIB);
    let before = machine.picture();
    for after in 0..2 {
        machine.soil.fails.set(Some((Step2Fail::Isolate, after)));
        let report = machine.claim(OPERATOR, pool, Wish::Exactly(range_at(0, 16 * MIB, 16 * MIB)));
        assert_eq!((report.state, report.blocker.cause), (State::Failed, Cause::Isolated));
        assert_eq!(machine.picture(), before);
    }
}
