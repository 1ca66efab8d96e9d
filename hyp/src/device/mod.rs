//! The platform that a guest sees: device models as plain state machines, which also run on a PC.

pub mod data_abort;
pub mod exception;
pub mod function_id;
pub mod identification;
pub mod instruction;
pub mod pool_call;
pub mod psci;
pub mod shared_uart;
pub mod smccc;
pub mod vgic;
pub mod vpl011;
pub mod wait;
