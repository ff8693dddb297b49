//! `polypath qemu SOCKET`: what to tell QEMU and libvirt.

use anyhow::{Context, Result};
use polypath_bench::output;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `polypath qemu`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// vhost-user-blk socket, as polypathd serves it.
    socket: PathBuf,
    /// Memory of the guest in MiB. It must be shared with the back-end.
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    memory_mib: u64,
    /// Queues; at most what the socket was made with.
    #[arg(long, default_value_t = 1)]
    queues: u16,
    /// Huge pages for the guest's memory.
    #[arg(long)]
    hugepages: bool,
}

/// Prints both.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let socket = std::path::absolute(&args.socket).context("socket path")?;
    let socket = socket.to_str().context("socket path: QEMU takes only UTF-8")?;
    output::print(text(args, socket))?;
    Ok(ExitCode::SUCCESS)
}

fn text(args: &Args, socket: &str) -> String {
    let Args { memory_mib, queues, .. } = args;
    let huge = if args.hugepages { ",hugetlb=on,hugetlbsize=2M" } else { "" };
    let backing = if args.hugepages { "<hugepages/>" } else { "" };
    // A comma ends a QEMU option; two stand for one. A quote ends a word of the shell, XML has its own characters.
    let option = socket.replace(',', ",,").replace('\'', r"'\''");
    let xml = socket.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;").replace('\'', "&apos;");
    format!(
        "# QEMU (add your own -drive, -net and so on). Guest memory must be shared.\n\
         qemu-system-x86_64 -accel kvm -cpu host -m {memory_mib} \\\n\
         \x20 -object 'memory-backend-memfd,id=mem0,size={memory_mib}M,share=on{huge}' -machine q35,memory-backend=mem0 \\\n\
         \x20 -chardev 'socket,id=polypath0,path={option},reconnect=1' \\\n\
         \x20 -device vhost-user-blk-pci,chardev=polypath0,num-queues={queues}\n\
         \n\
         # libvirt: inside <domain>\n\
         <memoryBacking><source type='memfd'/><access mode='shared'/>{backing}</memoryBacking>\n\
         # libvirt: inside <devices>\n\
         <disk type='vhostuser' device='disk'>\n\
         \x20 <driver name='qemu' type='raw' queues='{queues}'/>\n\
         \x20 <source type='unix' path='{xml}'>\n\
         \x20   <reconnect enabled='yes' timeout='1'/>\n\
         \x20 </source>\n\
         \x20 <target dev='vda' bus='virtio'/>\n\
         </disk>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_name_the_socket_and_share_memory() {
        let args = Args { socket: PathBuf::new(), memory_mib: 512, queues: 4, hugepages: true };
        let text = text(&args, "/run/a,b&c.sock");
        for part in [
            "path=/run/a,,b&c.sock,",
            "path='/run/a,b&amp;c.sock'",
            "share=on",
            "mode='shared'",
            "num-queues=4",
            "queues='4'",
        ] {
            assert!(text.contains(part), "{part} not in\n{text}");
        }
    }

    /// What is printed is for a shell, which must see one word.
    #[test]
    fn a_quote_in_the_path_does_not_end_the_word() {
        let args = Args { socket: PathBuf::new(), memory_mib: 512, queues: 1, hugepages: false };
        let text = text(&args, "/run/it's.sock");
        let line = text.lines().find(|line| line.contains("-chardev")).unwrap();
        let script = format!("printf %s {}", line.trim().trim_start_matches("-chardev").trim_end_matches('\\'));
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        let word = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(word, "socket,id=polypath0,path=/run/it's.sock,reconnect=1");
    }
}
