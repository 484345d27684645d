//! Loop devices (loop(4)): find the one that backs a file, or attach a new one.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::failed;
use crate::error::{Error, Kind, Result};

/// `struct loop_info64`, include/uapi/linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    lo_device: u64,
    lo_inode: u64,
    lo_rdevice: u64,
    lo_offset: u64,
    lo_sizelimit: u64,
    lo_number: u32,
    lo_encrypt_type: u32,
    lo_encrypt_key_size: u32,
    lo_flags: u32,
    lo_file_name: [u8; 64],
    lo_crypt_name: [u8; 64],
    lo_encrypt_key: [u8; 32],
    lo_init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const EMPTY: LoopInfo64 = LoopInfo64 {
    lo_device: 0,
    lo_inode: 0,
    lo_rdevice: 0,
    lo_offset: 0,
    lo_sizelimit: 0,
    lo_number: 0,
    lo_encrypt_type: 0,
    lo_encrypt_key_size: 0,
    lo_flags: 0,
    lo_file_name: [0; 64],
    lo_crypt_name: [0; 64],
    lo_encrypt_key: [0; 32],
    lo_init: [0; 2],
};

const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

nix::ioctl_none_bad!(loop_ctl_get_free, 0x4C82);
nix::ioctl_write_ptr_bad!(loop_configure, 0x4C0A, LoopConfig);
nix::ioctl_read_bad!(loop_get_status64, 0x4C05, LoopInfo64);
nix::ioctl_none_bad!(loop_set_capacity, 0x4C07);

/// A loop device: its node, and the open file that keeps an autocleared device alive until it is mounted.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    pub path: PathBuf,
    file: File,
}

impl LoopDevice {
    /// Its file has another size now, and so has it.
    pub(crate) fn take_size(&self) -> Result<()> {
        // SAFETY: the ioctl takes no argument; the file is open.
        #[expect(unsafe_code, reason = "nix has no loop ioctls")]
        let result = unsafe { loop_set_capacity(self.file.as_raw_fd()) };
        result.map(drop).map_err(|e| failed(format_args!("set the size of {}", self.path.display()), e))
    }
}

/// The devices that back this file already. Two devices on one file would be two filesystems on it.
///
/// Who attaches a device if there is none holds the lock that all who do that take.
pub(crate) fn find(backing: BorrowedFd<'_>) -> Result<Vec<LoopDevice>> {
    let wanted = super::fs::metadata(backing)?;
    let devices = std::fs::read_dir("/sys/block").map_err(Error::from)?;
    let mut found = Vec::new();
    for name in devices.flatten().map(|entry| entry.file_name()) {
        let Some(name) = name.to_str().filter(|name| name.starts_with("loop")) else { continue };
        if !Path::new("/sys/block").join(name).join("loop").exists() {
            continue; // not attached to anything
        }
        let Ok(device) = open(&Path::new("/dev").join(name)) else { continue };
        let mut info = EMPTY;
        // SAFETY: the structure has the layout of loop_info64 and lives through the call.
        #[expect(unsafe_code, reason = "nix has no loop ioctls")]
        let result = unsafe { loop_get_status64(device.file.as_raw_fd(), &raw mut info) };
        if result.is_ok() && info.lo_device == wanted.st_dev && info.lo_inode == wanted.st_ino {
            found.push(device);
        }
    }
    Ok(found)
}

/// Attaches a free device to the file, with direct I/O (no second copy in the page cache) and autoclear (it detaches
/// itself when the filesystem is unmounted).
pub(crate) fn attach(backing: &File) -> Result<LoopDevice> {
    let control = File::options()
        .read(true)
        .write(true)
        .open("/dev/loop-control")
        .map_err(|e| Error::from_io("open /dev/loop-control", e))?;
    for _ in 0..64 {
        // SAFETY: the ioctl takes no argument; the file is open.
        #[expect(unsafe_code, reason = "nix has no loop ioctls")]
        let number =
            unsafe { loop_ctl_get_free(control.as_raw_fd()) }.map_err(|e| failed("find a free loop device", e))?;
        let device = open(&PathBuf::from(format!("/dev/loop{number}")))?;
        let mut info = EMPTY;
        info.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
        let config =
            LoopConfig { fd: backing.as_fd().as_raw_fd().unsigned_abs(), block_size: 0, info, reserved: [0; 8] };
        // SAFETY: the structure has the layout of loop_config, lives through the call and is only read.
        #[expect(unsafe_code, reason = "nix has no loop ioctls")]
        let result = unsafe { loop_configure(device.file.as_raw_fd(), &raw const config) };
        match result {
            Ok(_) => return Ok(device),
            Err(Errno::EBUSY) => continue, // somebody took it between the two calls
            Err(e) => return Err(failed(format_args!("attach {}", device.path.display()), e)),
        }
    }
    Err(Error::new(Kind::InUse, "find a free loop device: others kept taking it, 64 times"))
}

fn open(path: &Path) -> Result<LoopDevice> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| Error::from_io(format_args!("open {}", path.display()), e))?;
    Ok(LoopDevice { path: path.to_path_buf(), file })
}
