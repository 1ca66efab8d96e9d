#![no_std]
#![no_main]
//! x
bare::entry!(main);
fn main(_p: &bare::platform::Platform) {
    bare::say!("hello");
}
