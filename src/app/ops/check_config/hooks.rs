//! Which hooks would run, and why not the others.

use std::path::Path;

use super::Findings;
use crate::config::{self, Trust};
use crate::hooks::directory::programs;
use crate::hooks::{Hooks, Program, Unusable};

impl Findings {
    pub(crate) fn hooks(&mut self, hooks: &config::Hooks) {
        if let Some(directory) = &hooks.directory {
            self.directory(directory, hooks.post_on_failure);
        }
        if let Some(sync) = &hooks.sync {
            self.sync(hooks, sync);
        }
    }

    fn directory(&mut self, directory: &Path, post_on_failure: bool) {
        let (what, shown) = ("hooks.directory", directory.display());
        let found = match programs(directory) {
            Ok(found) => found,
            Err(Unusable::Unreadable(error)) => {
                return self.bad(what, format!("{shown}: {error}"), "make the folder, or set hooks.directory to \"\"");
            }
            Err(Unusable::Untrusted(problem)) => {
                let remedy = "hooks run as the service: nobody else may be able to put one there";
                return self.bad(what, format!("none of its hooks is run: {problem}"), remedy);
            }
        };
        let run = found.iter().filter(|one| one.problem.is_none()).count();
        self.good(what, format!("{shown}: {run} hooks"));
        if run > 0 && !post_on_failure {
            self.doubtful(
                "hooks.post_on_failure",
                "false: after an operation that failed, the post of a hook is not called unless its pre has printed a \
                 line \"quiesced\"",
                "let each hook that freezes print \"quiesced\" first, or set hooks.post_on_failure = true",
            );
        }
        for program in found {
            let is_hidden = program.is_hidden();
            let Program { name, problem, .. } = program;
            let what = format!("hook {}", name.to_string_lossy());
            match problem {
                None => self.good(&what, "is run"),
                Some(_) if is_hidden => self.good(&what, "is passed over: its name starts with a dot"),
                Some(problem) => {
                    self.doubtful(&what, format!("is not run: it {problem}"), "mend that, or take it from the folder");
                }
            }
        }
    }

    fn sync(&mut self, hooks: &config::Hooks, sync: &config::Sync) {
        let what = "hooks.sync";
        if let Err(error) = Hooks::new(hooks.clone()) {
            return self.bad(what, error, "name a certificate that can be read in hooks.sync.ca_certificate");
        }
        self.good(what, format!("VMs that ask for it are told, and {} that the config names", sync.urls.len()));
        if let Some(weakness) = config::weakness(&sync.secret) {
            self.doubtful(
                "hooks.sync.secret",
                format!("{weakness}: whoever guesses it can have a guest frozen"),
                "make one with `openssl rand -hex 32`, and give it to the guests' servers too",
            );
        }
        if sync.hosts.iter().any(|host| host == "*") && !matches!(sync.trust, Trust::CaFile(_)) {
            self.doubtful(
                "hooks.sync.hosts",
                "the guests' secret goes to any host that a VM's description names",
                "name the guests' hosts, or their authority with hooks.sync.ca_certificate",
            );
        }
        if !sync.post_on_failure {
            self.doubtful(
                "hooks.sync.post_on_failure",
                "false: a guest that was asked is not told the end of a snapshot that failed",
                "set it to true, unless the guests let go by themselves",
            );
        }
        if sync.trust == Trust::InsecureSkipVerify {
            self.doubtful(
                "hooks.sync.insecure_skip_verify",
                "the guests' secret goes to whoever answers in their place",
                "name the guests' authority with hooks.sync.ca_certificate",
            );
        }
    }
}
