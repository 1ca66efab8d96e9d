//! Multiplication followed by division, without overflow.

/// Returns `value * numerator / denominator`, rounded down, without overflow. Returns `u64::MAX` if the quotient does
/// not fit, or if the denominator is 0. Avoids a 128-bit division, which is large and slow.
pub fn scaled(value: u64, numerator: u64, denominator: u64) -> u64 {
    let product = u128::from(value) * u128::from(numerator);
    let (mut rest, mut low) = ((product >> 64) as u64, product as u64);
    if rest == 0 {
        return low.checked_div(denominator).unwrap_or(u64::MAX);
    }
    if rest >= denominator {
        return u64::MAX;
    }
    // Long division, bit by bit: `low` passes its bits to `rest`, which stays below the denominator, and takes the bits
    // of the quotient.
    for _ in 0..u64::BITS {
        let has_carry = rest >> 63 != 0;
        rest = rest << 1 | low >> 63;
        low <<= 1;
        if has_carry || rest >= denominator {
            rest = rest.wrapping_sub(denominator);
            low |= 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_quotient_that_does_not_fit_saturates() {
        assert_eq!(scaled(1 << 40, 1_000_000_000, 1 << 30), 1_024_000_000_000);
        assert_eq!(scaled(u64::MAX, 2, 1), u64::MAX);
        assert_eq!(scaled(5, 5, 0), u64::MAX);
        assert_eq!(scaled(0, 0, 0), u64::MAX);
        assert_eq!(scaled(u64::MAX, u64::MAX, u64::MAX), u64::MAX);
        assert_eq!(scaled(u64::MAX, u64::MAX - 1, u64::MAX), u64::MAX - 1);
    }

    proptest! {
        #[test]
        fn it_is_the_quotient(value: u64, numerator: u64, denominator: u64, shifts: [u8; 3]) {
            let [value, numerator, denominator] =
                [(value, 0), (numerator, 1), (denominator, 2)].map(|(number, at)| number >> (shifts[at] % 64));
            let wide = u128::from(value) * u128::from(numerator);
            let quotient = wide.checked_div(denominator.into()).and_then(|wide| u64::try_from(wide).ok());
            prop_assert_eq!(scaled(value, numerator, denominator), quotient.unwrap_or(u64::MAX));
        }
    }
}
