//! The EL2 image. All code is in the library; `boot::entry` has the entry.
#![no_std]
#![no_main]

use hyp as _;
