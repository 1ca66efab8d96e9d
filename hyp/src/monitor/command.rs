//! The table of commands.

/// Returns from a command: the machine refuses.
macro_rules! refuse {
    ($session:expr, $($text:tt)*) => { return Err($session.refuse(format_args!($($text)*))) };
}

/// Returns from a command: the words that were typed are wrong.
macro_rules! usage {
    ($session:expr, $($text:tt)*) => { return Err($session.usage(format_args!($($text)*))) };
}

mod backing;
mod balance;
mod claims;
mod console;
mod cost;
mod devices;
mod evacuate;
mod guest;
mod guests;
mod heat;
mod help;
mod host;
mod jobs;
mod log;
mod memory;
mod migrate;
mod moved;
mod names;
mod physical;
mod pools;
mod rate;
mod retire;
mod stats;
mod top;
mod trace;
mod watch;

use super::grammar::{Kind, Parameter, optional, required};
use super::session::{Commands, command};

const GUEST: Parameter = required("GUEST", Kind::Guest);
const CONTROLLER: Parameter = required("CONTROLLER", Kind::Controller);
const NUMBER: Parameter = required("NUMBER", Kind::Number(1, u32::MAX as u64));

/// The commands.
pub const COMMANDS: Commands = Commands(&[
    command("help", help::run, "list the commands, or explain one")
        .takes(&[optional("COMMAND", Kind::Command)])
        .details(
            "Tab completes commands and arguments, the arrow keys recall earlier lines, Ctrl-C interrupts a \
             command. Every command takes --json (one object on one line), --exact (bytes and nanoseconds \
             instead of rounded units) and --help. Ctrl-] ? lists the keys that switch consoles.",
        )
        .example("help start"),
    command("guests", guests::list, "list the guests: state, vCPUs, memory, and why one is stopped")
        .example("guests --json"),
    command("guest", guest::run, "show a guest, its device tree, or the memory behind its RAM")
        .takes(&[GUEST, optional("tree|map", Kind::Word(&["tree", "map"]))])
        .details(
            "tree prints the source of the device tree that the guest gets. map lists the guest's RAM: the \
             controllers that back it, and the number of units of 1 GiB, 2 MiB and 4 KiB.",
        )
        .example("guest alpha map"),
    command("start", guests::start, "start a guest that is off").takes(&[GUEST]).example("start alpha"),
    command("stop", guests::stop, "stop a guest at once and free its memory")
        .takes(&[GUEST])
        .details("The guest is not asked to shut down; to shut it down cleanly, run poweroff in it.")
        .example("stop alpha"),
    command("reset", guests::reset, "reset a guest: start it again from its images")
        .takes(&[GUEST])
        .example("reset alpha"),
    command("devices", devices::run, "list the guests' devices, their DMA windows, and the SMMUs")
        .takes(&[optional("GUEST", Kind::Guest)])
        .details(
            "HOST is a PCI function's address on the host. STREAMS are the device's streams, SMMU:StreamID. \
             Devices of a guest that share an interrupt share its count. FAULTS are accesses that the SMMU \
             denied. A device that failed is cut off until its guest starts again.",
        )
        .example("devices alpha"),
    command("cpus", host::cpus, "list the CPUs, their vCPUs and their mitigations"),
    command(
        "controllers",
        host::controllers,
        "list the memory controllers: their ranges and the use of their memory",
    )
    .example("controllers --exact"),
    command("mem", memory::mem, "show the amount of RAM and its use")
        .details(
            "Pool memory is lent to guests, so it also counts as Guests or Free. MovableOnly is the memory \
             in zone MOVABLE: the designated movable blocks.",
        )
        .example("mem --exact"),
    command("zones", memory::zones, "list the zones, in total and by controller").details(
        "NORMAL holds memory that Ballast cannot move, MOVABLE only guests' RAM. Their spans may \
             overlap; every frame is present in exactly one.",
    ),
    command("dmb", physical::dmb, "list the designated movable blocks and their use").details(
        "LENT is memory that guests use and Ballast can move away, CLAIMED memory that the owners of \
             pools have claimed.",
    ),
    command("buddyinfo", physical::buddyinfo, "list the free blocks by order, for each zone and controller")
        .details("A block of order N has 2^N frames of 4 KiB: order 9 is 2 MiB, order 18 is 1 GiB."),
    command(
        "pagetypeinfo",
        physical::pagetypeinfo,
        "list pageblocks of 2 MiB and free blocks by migratetype",
    ),
    command("check", physical::check, "check the whole frame table for consistency").details(
        "Every frame must be in one block, one zone and one state; counters and free lists must match; \
             guests' blocks must be mapped at the address in the reverse map.",
    ),
    command("map", memory::map, "draw a map of the physical memory")
        .takes(&[optional("CONTROLLER", Kind::Controller)])
        .details("A character stands for 2 MiB, or for more if the controller is large.")
        .example("map mc0"),
    command("frame", memory::frame, "show everything known about the frame at a physical address")
        .takes(&[required("ADDRESS", Kind::Number(0, u64::MAX))])
        .example("frame 0x48000000"),
    command("migrate", migrate::migrate, "move a running guest's memory to a controller")
        .takes(&[GUEST, optional("REGION", Kind::Region), CONTROLLER, optional("--force", Kind::Flag)])
        .details(
            "REGION is all, dmbs (the designated movable blocks), dmb0 (the first of them), ram0 (the first \
             other region), or a range of guest addresses like 64M@0x48000000. The command returns at once; \
             jobs shows the progress. --force moves a region to a controller that its strict placement \
             excludes, and leaves the placement as it is.",
        )
        .example("migrate alpha dmb0 mc1"),
    command("pin", migrate::pin, "pin a region of a guest to controllers, and move it there")
        .takes(&[
            GUEST,
            required("REGION", Kind::Region),
            required("CONTROLLERS", Kind::Controllers),
            optional("MODE", Kind::Word(&["strict", "preferred", "interleave"])),
        ])
        .details(
            "CONTROLLERS are names separated by commas. The pin holds for the memory that the region has \
             and for later allocations. MODE is strict: only these controllers (the default); preferred: \
             others if these are full; interleave: in turns of 2 MiB, in proportion to free memory, which \
             also redistributes memory that is there already. REGION is as for migrate, but not a part of a \
             region.",
        )
        .example("pin alpha all mc0,mc1 interleave"),
    command("unpin", migrate::unpin, "return a region of a guest to the placement in its configuration")
        .takes(&[GUEST, optional("REGION", Kind::Region)])
        .details("Nothing moves. REGION is as for pin; the default is all.")
        .example("unpin alpha"),
    command(
        "evacuate",
        evacuate::evacuate,
        "move all guests' memory off a controller and close it to allocations",
    )
    .takes(&[CONTROLLER])
    .details(
        "Lists the memory that cannot move, and why. The controller is closed at once and evacuated \
             once nothing behind it is in use, as controllers shows. restore opens it again.",
    )
    .example("evacuate mc1"),
    command("restore", evacuate::restore, "open a controller to allocations again")
        .takes(&[CONTROLLER])
        .example("restore mc1"),
    command("balance", balance::run, "move guests' memory so that controllers carry the same load")
        .takes(&[optional("free|bytes|heat", Kind::Word(&["free", "bytes", "heat"]))])
        .details(
            "The load is free: free memory (the default); bytes: guests' memory; or heat: memory that \
             guests touch within a second. Differences up to an eighth of the mean (heat: a quarter) are \
             left alone. Moving heat back needs twice the threshold. Pins and placements are respected; \
             refused while jobs run.",
        )
        .example("balance heat"),
    command("heat", heat::run, "measure the memory that guests touch within some seconds")
        .takes(&[optional("SECONDS", Kind::Number(1, 60))])
        .details(
            "Reads the access flags in stage 2, so a touched unit counts as a whole. Each unit is scanned \
             twice; the report shows the cost. On CPUs without hardware access flags, the first access to \
             each unit also faults.",
        )
        .example("heat 5"),
    command("retire", retire::retire, "take failing memory out of use for good")
        .takes(&[required("ADDRESS", Kind::Number(0, u64::MAX)), optional("SIZE", Kind::Size)])
        .details(
            "Guests' memory in the range is moved, then the frames are retired. The answer lists frames \
             that must wait, for a release or for a guest to stop, and frames that cannot be retired.",
        )
        .example("retire 0xbfff0000 64K"),
    command("jobs", jobs::list, "list the migrations: waiting, running, and recently ended")
        .example("watch 1 jobs"),
    command("job", jobs::show, "show a migration: its progress, its rate, and the memory that did not move")
        .takes(&[NUMBER])
        .details("jobs lists the numbers.")
        .example("job 3"),
    command("pause", jobs::pause, "pause a migration").takes(&[NUMBER]).example("pause 3"),
    command("resume", jobs::resume, "resume a paused migration").takes(&[NUMBER]).example("resume 3"),
    command("cancel", jobs::cancel, "cancel a migration")
        .takes(&[NUMBER])
        .details("Memory that has moved stays at its new place.")
        .example("cancel 3"),
    command("rate", rate::rate, "show or set the limits of migration")
        .takes(&[
            optional("limit|slice|share|stall", Kind::Word(&["limit", "slice", "share", "stall"])),
            optional("VALUE", Kind::Either(&Kind::Size, &Kind::Word(&["off"]))),
        ])
        .details(
            "limit: bytes a second, at least 64K, or off. slice: microseconds for which a CPU works on a \
             job at a time. share: per cent of a guest's time that migration may take if no CPU is idle. \
             stall: bytes left to copy up to which a guest that writes to a 2 MiB unit waits; with more \
             left, the unit is split.",
        )
        .example("rate limit 100M"),
    command("pools", pools::list, "list the pools: lent, claimed and claimable memory")
        .details("A pool's memory is lent to guests until its owner claims it."),
    command("pool", pools::show, "show a pool: its use, obstacles to claims, and a map")
        .takes(&[required("POOL", Kind::Pool)])
        .example("pool video"),
    command("claim", claims::claim, "claim contiguous memory from a pool; show or cancel a claim")
        .takes(&[
            required("POOL|NUMBER|cancel", CLAIM),
            optional(
                "SIZE|SIZE@ADDRESS|NUMBER",
                Kind::Any("a size like 64M, or a range like 64M@0x48000000"),
            ),
            optional("ALIGNMENT", Kind::Size),
        ])
        .details(
            "Guests' memory in the range is moved away. The command returns at once; claims shows the \
             progress, claim NUMBER one claim with the ranges tried. claim cancel NUMBER cancels a claim \
             and undoes its work.",
        )
        .example("claim video 64M"),
    command("claims", claims::statistics, "list claims and releases, or show their counters and latencies")
        .takes(&[optional("stats", Kind::Word(&["stats"]))])
        .example("claims stats"),
    command(
        "release",
        claims::release,
        "release claimed memory: a claim's range, any range, or all of a pool",
    )
    .takes(&[
        required("POOL|NUMBER", Kind::Either(&Kind::Number(1, u32::MAX as u64), &Kind::Pool)),
        optional("SIZE@ADDRESS", Kind::Any("a range like 64M@0x48000000")),
    ])
    .details("The memory is scrubbed and lent to guests again.")
    .example("release 3"),
    command("console", console::run, "list the consoles, switch to one, or limit one")
        .takes(&[
            optional("NAME|all|front", Kind::Either(&Kind::Console, &Kind::Word(&["all", "front"]))),
            optional("limit", Kind::Word(&["limit"])),
            optional("SIZE", Kind::Size),
        ])
        .details(
            "all shows every guest's output, each line behind the guest's name; front shows only the \
             console in front. limit sets how much output is kept while another console is in front.",
        )
        .example("console alpha"),
    command("stats", stats::run, "show the guests' counters: exits, interrupts, time at EL2")
        .takes(&[optional(
            "GUEST|migration|claims|reset",
            Kind::Either(&Kind::Guest, &Kind::Word(&["migration", "claims", "reset"])),
        )])
        .details(
            "With a guest: its exits by reason. migration: memory moved, and guests' waiting times; claims: \
             likewise; both since boot. reset starts the counters again from zero. Time at EL2 leaves out \
             exits that are answered at once. Text counts from the last reset, JSON always from boot.",
        )
        .example("stats alpha"),
    command("top", top::run, "show controllers and guests on a screen that refreshes itself")
        .takes(&[optional("SECONDS", Kind::Number(1, 3600))])
        .details("Any key quits.")
        .example("top 5"),
    command("trace", trace::run, "show the last events, or turn tracing on or off")
        .takes(&[
            optional(
                "GUEST|KIND|on|off",
                Kind::Either(
                    &Kind::Guest,
                    &Kind::Word(&["on", "off", "exit", "inject", "migrate", "claim", "device", "life"]),
                ),
            ),
            optional("COUNT", Kind::Number(1, 4096)),
        ])
        .details(
            "KIND is exit, inject (interrupts), migrate, claim, device (faults) or life (of guests). Each CPU \
             keeps its last 251 events. Tracing pauses while events are shown.",
        )
        .example("trace exit 20"),
    command("cost", cost::run, "measure the time of a log line and of a trace event on this machine")
        .details("Writes a few lines to the log."),
    command("log", log::run, "show the log, or its lines of at least a level")
        .takes(&[optional("LEVEL", Kind::Level)])
        .details(
            "LEVEL is error, warn, info or debug. The last 64 KiB are kept. log= on the command line \
             chooses the lines to log: log=text,info,vgic=debug.",
        )
        .example("log warn"),
    command("version", host::version, "show the version, the uptime, and Ballast's own memory"),
    command("watch", watch::run, "repeat a command until a key is pressed")
        .takes(&[required("SECONDS", Kind::Number(1, 3600)), required("COMMAND", Kind::Line)])
        .example("watch 2 guests"),
]);

/// The first argument of `claim`.
const CLAIM: Kind =
    Kind::Either(&Kind::Number(1, u32::MAX as u64), &Kind::Either(&Kind::Pool, &Kind::Word(&["cancel"])));

/// The items that nearly every command uses.
mod prelude {
    pub(super) use crate::monitor::failure::{Done, Failure};
    pub(super) use crate::monitor::grammar::{Argument, Arguments};
    pub(super) use crate::monitor::machine::Machine;
    pub(super) use crate::monitor::report::Value;
    pub(super) use crate::monitor::report::Value::{
        Address, Bytes, Count, Flag, Frames, Nanoseconds, Nothing, Numbers, Permille, Ranges, Show, Text,
        Words,
    };
    pub(super) use crate::monitor::session::Session;
    pub(super) use crate::monitor::units::{Compact, Size};
    pub(super) use core::fmt::{self, Write, from_fn};
}
