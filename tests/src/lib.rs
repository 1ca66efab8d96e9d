//! System tests: Ballast booted in QEMU.
