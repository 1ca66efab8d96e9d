//! Load on the devices of Linux guests that have the ramdisk of [`Guest::with_device_drivers`](crate::Guest::with_device_drivers).

use crate::system::System;

/// A load on a guest's disk, and on the network from another guest, which records each error.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Name of the guest.
    pub guest: &'a str,
    /// Name of the disk on the machine: its serial number.
    pub disk: &'a str,
    /// Address of the other guest, if there is a network.
    pub peer: Option<&'a str>,
}

impl Load<'_> {
    /// Puts a file of random bytes and its sum where the other guest fetches them. Do this in both before [`Self::start`].
    #[track_caller]
    pub fn serve(&self, system: &mut System) {
        system.run(self.guest, "head -c 2M /dev/urandom > /www/data; md5sum < /www/data > /www/sum");
    }

    /// Starts the load: fio writes and verifies random blocks of the disk, and the other guest's file is fetched and compared.
    #[track_caller]
    pub fn start(&self, system: &mut System) {
        let find = format!("grep -lx {} /sys/block/vd*/serial | cut -d / -f 4", self.disk);
        let disk = system.run(self.guest, &find);
        let fio = format!(
            "fio --name=io --filename=/dev/{disk} --rw=randwrite --bsrange=4k-64k --size=12M --direct=1 \
             --ioengine=libaio --iodepth=16 --thread --verify=crc32c --verify_fatal=1"
        );
        system.run(
            self.guest,
            "rm -f /tmp/stop /tmp/bad; for file in ended rounds fetches; do : > /tmp/$file; done",
        );
        let disk = format!(
            "(while [ ! -e /tmp/stop ]; do {fio} > /tmp/fio 2>&1 || cat /tmp/fio >> /tmp/bad; \
             echo >> /tmp/rounds; done; echo >> /tmp/ended) > /dev/null 2>&1 &"
        );
        system.run(self.guest, &format!("{disk} true"));
        if let Some(peer) = self.peer {
            system.run(self.guest, &format!("wget -q -T 100 -O /tmp/sum http://{peer}/sum"));
            let network = format!(
                "(while [ ! -e /tmp/stop ]; do wget -q -T 100 -O /tmp/got http://{peer}/data; \
                 md5sum < /tmp/got | cmp - /tmp/sum || echo network >> /tmp/bad; echo >> /tmp/fetches; done; \
                 echo >> /tmp/ended) > /dev/null 2>&1 &"
            );
            system.run(self.guest, &format!("{network} true"));
        }
    }

    /// Waits until the disk has been verified `rounds` times more.
    ///
    /// # Panics
    /// It does not get there, or there was an error.
    #[track_caller]
    pub fn wait_for_rounds(&self, system: &mut System, rounds: u32) {
        let count = "$(wc -l < /tmp/rounds)";
        let wait = format!(
            "end=$(({count} + {rounds})); until [ {count} -ge $end ] || [ -e /tmp/bad ]; do sleep 1; done; \
             [ ! -e /tmp/bad ] || cat /tmp/bad"
        );
        assert_eq!(system.run(self.guest, &wait), "", "errors in {}", self.guest);
    }

    /// Ends the load, and checks that it ran without an error. Returns the number of verified rounds and of fetched files.
    ///
    /// # Panics
    /// There was an error.
    #[track_caller]
    pub fn end(&self, system: &mut System) -> (u32, u32) {
        let parts = 1 + u32::from(self.peer.is_some());
        let wait = format!(
            "touch /tmp/stop; until [ $(wc -l < /tmp/ended) -ge {parts} ]; do sleep 1; done; \
             [ ! -e /tmp/bad ] || cat /tmp/bad"
        );
        assert_eq!(system.run(self.guest, &wait), "", "errors in {}", self.guest);
        let mut count = |file: &str| {
            let text = system.run(self.guest, &format!("wc -l < /tmp/{file}"));
            text.parse().unwrap_or_else(|error| panic!("{file}: {text}: {error}"))
        };
        let counts: (u32, u32) = (count("rounds"), count("fetches"));
        assert!(counts.0 > 0 && (self.peer.is_none() || counts.1 > 0), "{}: {counts:?}", self.guest);
        let troubles = system.run(
            self.guest,
            "dmesg | grep -E 'Oops|BUG|I/O error|nobody cared|hung|swiotlb buffer is full|Bad page' || true",
        );
        assert_eq!(troubles, "", "{}", self.guest);
        counts
    }
}
