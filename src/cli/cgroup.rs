//! `tupper cgroup`: the kernel's chain from task to cgroup.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use tupper::container::{self, Cgroup as Node, Chain, CssSet};

use super::output::{self, Format};

#[derive(Debug, Args)]
#[command(
    after_help = "Example: tupper cgroup web\n\nTasks that are in the same cgroups everywhere share a css_set of the \
    kernel's; its subsys[] has the state of each controller, which is that of a cgroup (include/linux/cgroup-defs.h)."
)]
pub(super) struct Cgroup {
    /// How to print
    #[arg(long, default_value = "table")]
    format: Format,
    /// Name or id
    container: String,
}

impl Cgroup {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        let store = super::open_existing(root)?;
        let chain = container::chain(&store, &self.container)?;
        match self.format {
            Format::Table => output::text(&drawn(&chain)),
            Format::Json => output::json(&value(&chain)),
        }
    }
}

/// A tree: tasks, their css_set, and below it the cgroup of each controller.
fn drawn(chain: &Chain) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "container {} (pid {})", chain.id.short(), chain.pid);
    let _ = writeln!(text, "task_struct.cgroups -> css_set.subsys[] -> cgroup_subsys_state.cgroup -> cgroup");
    for (number, set) in chain.sets.iter().enumerate() {
        let _ = writeln!(text, "\ncss_set {}: {}", number + 1, counted(set.tasks.len(), "task"));
        for task in &set.tasks {
            let thread = if task.tid == task.pid { String::new() } else { format!(", thread of {}", task.pid) };
            let name = output::one_line(&task.name);
            let _ = writeln!(text, "│ task {} {name}  (pid {} inside{thread})", task.tid, task.inner_pid);
        }
        for (at, cgroup) in set.cgroups.iter().enumerate() {
            let last = at + 1 == set.cgroups.len();
            draw(&mut text, cgroup, if last { ("└─", "   ") } else { ("├─", "│  ") });
        }
    }
    text
}

fn draw(text: &mut String, cgroup: &Node, (branch, stem): (&str, &str)) {
    let kind = if cgroup.unified { "unified" } else { "v1" };
    let controllers = match cgroup.controllers.is_empty() {
        true => "no controllers".to_string(),
        false => cgroup.controllers.join(", "),
    };
    let id = cgroup.id.map_or("not mounted".to_string(), |id| format!("cgroup id {id}"));
    let _ = writeln!(text, "{branch} {kind}: {controllers} -> {}  ({id})", output::one_line(cgroup.path.display()));
    for (word, values) in [("limit", &cgroup.limits), ("usage", &cgroup.usage)] {
        for (file, value) in values {
            let _ = writeln!(text, "{stem}  {word} {file} = {}", output::one_line(value.replace('\n', "; ")));
        }
    }
}

fn counted(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

fn value(chain: &Chain) -> Value {
    let files = |values: &BTreeMap<String, String>| {
        values.iter().map(|(k, v)| (k.clone(), json!(v))).collect::<serde_json::Map<_, _>>()
    };
    let cgroup = |cgroup: &Node| {
        json!({
            "Unified": cgroup.unified,
            "Controllers": cgroup.controllers,
            "Path": cgroup.path,
            "Directory": cgroup.directory,
            "Id": cgroup.id,
            "Limits": files(&cgroup.limits),
            "Usage": files(&cgroup.usage),
        })
    };
    let set = |set: &CssSet| {
        let tasks =
            set.tasks.iter().map(|t| json!({ "Tid": t.tid, "Pid": t.pid, "InnerPid": t.inner_pid, "Name": t.name }));
        json!({ "Tasks": tasks.collect::<Vec<_>>(), "Cgroups": set.cgroups.iter().map(cgroup).collect::<Vec<_>>() })
    };
    json!({ "Id": chain.id, "Pid": chain.pid, "CssSets": chain.sets.iter().map(set).collect::<Vec<_>>() })
}
