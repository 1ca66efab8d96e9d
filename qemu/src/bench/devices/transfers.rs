//! Transfers of a disk and of a network in Linux: without Ballast with and without a DMA window, and under Ballast.

use super::{WINDOW, ask_ballast, shell, start_ballast, start_bare};
use crate::bench::{PATIENCE, QUICK_EXIT, with_transcript};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::session::Session;

/// Most instructions at EL2, as a share of the guest's own.
const LIMIT: f64 = 0.01;

/// A sequence of transfers.
struct Work {
    title: &'static str,
    /// Arguments of fio.
    arguments: &'static str,
    /// Bytes in one transfer.
    size: u64,
    /// Number of transfers.
    count: u64,
}

const SMALL: (u64, u64) = (4096, 8192);
const LARGE: (u64, u64) = (65536, 1024);

const fn work(title: &'static str, arguments: &'static str, (size, count): (u64, u64)) -> Work {
    Work { title, arguments, size, count }
}

const DISK: [Work; 8] = [
    work("disk, sequential read", "--rw=read", SMALL),
    work("disk, random read", "--rw=randread", SMALL),
    work("disk, sequential write", "--rw=write", SMALL),
    work("disk, random write", "--rw=randwrite", SMALL),
    work("disk, sequential read", "--rw=read", LARGE),
    work("disk, random read", "--rw=randread", LARGE),
    work("disk, sequential write", "--rw=write", LARGE),
    work("disk, random write", "--rw=randwrite", LARGE),
];

const NETWORK: [Work; 2] = [
    work("network, sent and received", "", (4096, 4096)),
    work("network, sent and received", "", (65536, 256)),
];

/// Shell functions: `w` prints the nanoseconds that the CPU was not idle, and `r` runs a command and prints those that it took.
const FUNCTIONS: [&str; 2] = [
    "w() { awk '/^now at/ { n = $3 } /sleeptime/ { n -= $(NF - 1) } END { printf \"%.0f\", n }' /proc/timer_list; }",
    "r() { a=$(w); \"$@\" > /dev/null 2>&1; e=$?; echo \"busy $(($(w) - a)) status $e\"; }",
];

/// Connects the two interfaces of one system through the network: what it sends from one to the other's address leaves by the
/// first and arrives by the second.
const LOOP: [&str; 5] = [
    "for i in all eth0 eth1; do echo 0 > /proc/sys/net/ipv4/conf/$i/rp_filter; \
     echo 1 > /proc/sys/net/ipv4/conf/$i/accept_local; done",
    "ip rule add pref 1 iif eth0 table local; ip rule add pref 1 iif eth1 table local; ip rule add pref 2 table 100",
    "ip route add 192.168.0.12 dev eth0 src 192.168.0.11 table 100",
    "ip route add 192.168.0.11 dev eth1 src 192.168.0.12 table 100",
    "ip rule add pref 3 table local; ip rule del pref 0",
];

/// Instructions of some work.
#[derive(Clone, Copy, Default)]
pub(super) struct Cost {
    /// Instructions of the guest, without those at EL2.
    pub(super) guest: f64,
    /// Instructions at EL2.
    pub(super) el2: f64,
}

/// Measures and prints the table. Returns `true` if the limit is met.
pub(super) fn run(image: &Image) -> Result<bool> {
    println!("\nmeasuring transfers of Linux: without Ballast, with a DMA window, and under Ballast");
    let window = format!(
        "&{{/pcie@10000000}} {{ dma-ranges = <0x2000000 0 0x40000000 0 0x40000000 0 {:#x}>; }};\n",
        2 * WINDOW
    );
    let bare = measure(&mut start_bare("")?, false)?;
    let windowed = measure(&mut start_bare(&window)?, false)?;
    let ballast = measure(&mut start_ballast(image)?, true)?;
    println!("\ninstructions per transfer in Linux, and those of the bounce for 4 KiB\n");
    println!(
        "transfer                            bare  with window  bounce/4K  Ballast    EL2   share   limit"
    );
    let mut is_kept = true;
    for (index, work) in DISK.iter().chain(&NETWORK).enumerate() {
        let per = |cost: f64| cost / work.count as f64;
        let share = ballast[index].el2 / ballast[index].guest;
        let bounce = (windowed[index].guest - bare[index].guest) / (work.size * work.count / 4096) as f64;
        let is_good = share <= LIMIT;
        is_kept &= is_good;
        println!(
            "{:27}{:3} K  {:8.0}  {:11.0}  {bounce:9.0}  {:7.0}  {:5.0}  {:4.2} %  {:4.2} %{}",
            work.title,
            work.size / 1024,
            per(bare[index].guest),
            per(windowed[index].guest),
            per(ballast[index].guest),
            per(ballast[index].el2),
            share * 100.0,
            LIMIT * 100.0,
            if is_good { "" } else { "  MISSED" },
        );
    }
    Ok(is_kept)
}

/// Measures all work, less the start of the program.
fn measure(session: &mut Session, has_ballast: bool) -> Result<Vec<Cost>> {
    prepare(session)?;
    for line in LOOP {
        shell(session, line)?;
    }
    let mut costs = Vec::new();
    for (all, command) in [(&DISK[..], disk as fn(&Work, u64) -> String), (&NETWORK[..], network)] {
        // Caches fill, and the network's addresses are resolved, before the first measurement.
        cost(session, &command(&all[0], 1), false)?;
        let start = cost(session, &command(&all[0], 1), has_ballast)?;
        for work in all {
            let whole = cost(session, &command(work, work.count + 1), has_ballast)?;
            costs.push(Cost { guest: whole.guest - start.guest, el2: whole.el2 - start.el2 });
        }
    }
    Ok(costs)
}

/// Defines the shell's functions.
pub(super) fn prepare(session: &mut Session) -> Result<()> {
    FUNCTIONS.iter().try_for_each(|line| shell(session, line))
}

/// Returns the command for `count` transfers of the disk.
fn disk(work: &Work, count: u64) -> String {
    format!(
        "fio --name=t --filename=/dev/vda --direct=1 --ioengine=psync --thread --gtod_reduce=1 --norandommap --size=128m \
         --bs={} --number_ios={count} {}",
        work.size, work.arguments
    )
}

/// Returns the command for `count` transfers from one interface to the other.
fn network(work: &Work, count: u64) -> String {
    let common = format!(
        "fio --ioengine=net --protocol=tcp --port=5000 --thread --gtod_reduce=1 --bs={} --size={}",
        work.size,
        work.size * count
    );
    format!(
        "sh -c '{common} --name=r --listen --rw=read & sleep 1; {common} --name=s --hostname=192.168.0.12 --rw=write; wait'"
    )
}

/// Runs `command` in the guest and returns its cost.
fn cost(session: &mut Session, command: &str, has_ballast: bool) -> Result<Cost> {
    // An answer of Ballast costs instructions at EL2 too.
    let before = if has_ballast { [el2(session)?, el2(session)?] } else { [0.0; 2] };
    session.send(format!("r {command}\r"))?;
    let said = session.expect(r"busy \d+ status \d+\r", PATIENCE);
    let said = said.map_err(|error| with_transcript(&error, session))?;
    let words: Vec<&str> = said.split_whitespace().collect();
    let [.., busy, _, status] = words.as_slice() else { return Err(wrong(&said)) };
    let busy: f64 = busy.parse().map_err(|_| wrong(&said))?;
    if *status != "0" {
        return Err(wrong(&said));
    }
    let el2 = if has_ballast { el2(session)? - before[1] - (before[1] - before[0]) } else { 0.0 };
    Ok(Cost { guest: busy - el2, el2 })
}

/// Returns the instructions that the guest has caused at EL2, with the most that fast paths can have taken.
fn el2(session: &mut Session) -> Result<f64> {
    let report = ask_ballast(session, "stats bench")?;
    let number = |key: &str| report[key].as_u64().ok_or_else(|| wrong(&report.to_string()));
    Ok((number("el2_ns")? + number("exit_count")? * QUICK_EXIT) as f64)
}

fn wrong(said: &str) -> Error {
    Error::Data { path: "Linux".into(), reason: said.into() }
}
