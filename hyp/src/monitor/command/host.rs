//! `cpus`, `controllers`, `version`: the host, and Ballast on it.

use core::fmt;

use super::super::grammar::{Arguments, Failure};
use super::super::machine::ControllerState;
use super::super::report::Value;
use super::super::session::Session;
use super::super::units::{Compact, Size};
use crate::mitigation::Branches;

/// Lists the CPUs.
pub(super) fn cpus(session: &mut Session<'_>, _: &Arguments<'_>) -> Result<(), Failure> {
    let columns = "cpu=CPU|mpidr=MPIDR|model=MODEL|state=STATE|guest=GUEST|vcpu=vCPU|vcpu_is_on=vCPU ON|branch_mitigation=|branch_loop_count=|=BRANCHES|store_bypass_mitigation=STORE BYPASS";
    session.report("cpus", |report, machine| {
        report.table("cpus", columns, "There are no CPUs.", &mut |table| {
            for (at, cpu) in (0..machine.cpu_count()).filter_map(|at| Some((at, machine.cpu(at)?))) {
                let (guest, vcpu, is_on) = match cpu.vcpu {
                    Some((guest, vcpu)) => {
                        (Value::Text(guest), Value::Count(vcpu as u64), Value::Flag(cpu.is_vcpu_on))
                    }
                    None => (Value::None, Value::None, Value::None),
                };
                let branches = cpu.mitigation.map(|choice| choice.branches);
                table.row(&[
                    Value::Count(at as u64),
                    Value::Address(cpu.mpidr),
                    Value::Text(cpu.model),
                    Value::Text(if cpu.is_online { "online" } else { "failed" }),
                    guest,
                    vcpu,
                    is_on,
                    branches.map_or(Value::None, |branches| Value::Text(branches.name())),
                    branches
                        .and_then(Branches::loop_count)
                        .map_or(Value::None, |count| Value::Count(count.into())),
                    branches.as_ref().map_or(Value::None, |branches| Value::Show(branches)),
                    cpu.mitigation.map_or(Value::None, |choice| Value::Text(choice.stores_name())),
                ])?;
            }
            Ok(())
        })
    })?;
    Ok(())
}

/// Lists the controllers.
pub(super) fn controllers(session: &mut Session<'_>, _: &Arguments<'_>) -> Result<(), Failure> {
    let columns = "name=NAME|state=|total_bytes=SIZE|free_bytes=FREE|guest_bytes=GUESTS|own_bytes=BALLAST|reserved_bytes=RESERVED|dmb_bytes=IN DMBs|used_bytes=|ranges=|=RANGES";
    session.report("controllers", |report, machine| {
        report.table("controllers", columns, "There are no controllers.", &mut |table| {
            for controller in (0..machine.controller_count()).filter_map(|at| machine.controller(at)) {
                let state = controller.state();
                let ranges = fmt::from_fn(|f| {
                    for (at, (base, size)) in controller.ranges.iter().enumerate() {
                        write!(f, "{}{}@{base:#x}", if at == 0 { "" } else { "," }, Compact(*size))?;
                    }
                    match state {
                        ControllerState::Open => Ok(()),
                        ControllerState::Closed => {
                            write!(f, " (closed, {} in use)", Size(controller.used_bytes))
                        }
                        ControllerState::Evacuated => write!(f, " (evacuated)"),
                    }
                });
                table.row(&[
                    Value::Text(controller.name),
                    Value::Text(state.name()),
                    Value::Bytes(controller.total_bytes),
                    Value::Bytes(controller.free_bytes),
                    Value::Bytes(controller.guest_bytes),
                    Value::Bytes(controller.own_bytes),
                    Value::Bytes(controller.reserved_bytes),
                    Value::Bytes(controller.dmb_bytes),
                    Value::Bytes(controller.used_bytes),
                    Value::Ranges(&controller.ranges),
                    Value::Show(&ranges),
                ])?;
            }
            Ok(())
        })
    })?;
    Ok(())
}

/// Shows what is running.
pub(super) fn version(session: &mut Session<'_>, _: &Arguments<'_>) -> Result<(), Failure> {
    let uptime_ns = session.io().now_ns();
    session.report("version", |report, machine| {
        let version = machine.version();
        let psci = fmt::from_fn(|f| write!(f, "{}.{}", version.psci.0, version.psci.1));
        let memory = fmt::from_fn(|f| {
            let [image, own, table] =
                [version.image_bytes, version.own_bytes, version.frame_table_bytes].map(Size);
            write!(f, "image {image}, own {own}, frame table {table}")
        });
        report.fields("version=Ballast|commit=Commit|compiler=Compiler|host=Host|psci=PSCI|uptime_ns=Up for|=Memory|image_bytes=|own_bytes=|frame_table_bytes=", &[Value::Text(version.version), Value::Text(version.commit), Value::Text(version.compiler), Value::Text(version.host), Value::Show(&psci), Value::Nanoseconds(uptime_ns), Value::Show(&memory), Value::Bytes(version.image_bytes), Value::Bytes(version.own_bytes), Value::Bytes(version.frame_table_bytes)])
    })?;
    Ok(())
}
