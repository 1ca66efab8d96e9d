//! The machines that Ballast is run on under QEMU, as data, and how they are started.
