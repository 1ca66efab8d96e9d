//! `cpus`, `controllers`, `version`: the host, and Ballast on it.

use core::fmt;

use super::super::grammar::{Arguments, Failure};
use super::super::report::{Value, column};
use super::super::session::Session;
use super::super::units::Size;

/// Lists the CPUs.
pub(super) fn cpus(session: &mut Session<'_>, _: &Arguments<'_>) -> Result<(), Failure> {
    let columns = [
        column("cpu", "CPU"),
        column("mpidr", "MPIDR"),
        column("model", "MODEL"),
        column("state", "STATE"),
        column("guest", "GUEST"),
        column("vcpu", "vCPU"),
        column("vcpu_is_on", "vCPU ON"),
    ];
    session.report("cpus", |report, machine| {
        report.table("cpus", &columns, "There are no CPUs.", &mut |row| {
            for (at, cpu) in (0..machine.cpu_count()).filter_map(|at| Some((at, machine.cpu(at)?))) {
                let (guest, vcpu, is_on) = match cpu.vcpu {
                    Some((guest, vcpu)) => {
                        (Value::Text(guest), Value::Count(vcpu as u64), Value::Flag(cpu.is_vcpu_on))
                    }
                    None => (Value::None, Value::None, Value::None),
                };
                row(&[
                    Value::Count(at as u64),
                    Value::Address(cpu.mpidr),
                    Value::Text(cpu.model),
                    Value::Text(if cpu.is_online { "online" } else { "failed" }),
                    guest,
                    vcpu,
                    is_on,
                ])?;
            }
            Ok(())
        })
    })?;
    Ok(())
}

/// Lists the controllers.
pub(super) fn controllers(session: &mut Session<'_>, _: &Arguments<'_>) -> Result<(), Failure> {
    let columns = [
        column("", "NAME"),
        column("name", ""),
        column("state", ""),
        column("total_bytes", "SIZE"),
        column("free_bytes", "FREE"),
        column("guest_bytes", "GUESTS"),
        column("own_bytes", "BALLAST"),
        column("reserved_bytes", ""),
        column("dmb_bytes", "IN DMBs"),
        column("ranges", "RANGES"),
    ];
    session.report("controllers", |report, machine| {
        report.table("controllers", &columns, "There are no controllers.", &mut |row| {
            for controller in (0..machine.controller_count()).filter_map(|at| machine.controller(at)) {
                let state = if controller.is_evacuated { "evacuated" } else { "in use" };
                let name = fmt::from_fn(|f| {
                    f.write_str(controller.name)?;
                    if controller.is_evacuated { write!(f, " ({state})") } else { Ok(()) }
                });
                row(&[
                    Value::Show(&name),
                    Value::Text(controller.name),
                    Value::Text(state),
                    Value::Bytes(controller.total_bytes),
                    Value::Bytes(controller.free_bytes),
                    Value::Bytes(controller.guest_bytes),
                    Value::Bytes(controller.own_bytes),
                    Value::Bytes(controller.reserved_bytes),
                    Value::Bytes(controller.dmb_bytes),
                    Value::Ranges(&controller.ranges),
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
        report.fields(&[
            (column("version", "Ballast"), Value::Text(version.version)),
            (column("commit", "Commit"), Value::Text(version.commit)),
            (column("compiler", "Compiler"), Value::Text(version.compiler)),
            (column("host", "Host"), Value::Text(version.host)),
            (column("psci", "PSCI"), Value::Show(&psci)),
            (column("uptime_ns", "Up for"), Value::Nanoseconds(uptime_ns)),
            (column("", "Memory"), Value::Show(&memory)),
            (column("image_bytes", ""), Value::Bytes(version.image_bytes)),
            (column("own_bytes", ""), Value::Bytes(version.own_bytes)),
            (column("frame_table_bytes", ""), Value::Bytes(version.frame_table_bytes)),
        ])
    })?;
    Ok(())
}
