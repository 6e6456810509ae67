//! Checks which hooks would run, and why others would not.

use std::path::Path;

use super::findings::Findings;
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
                return self.bad(
                    what,
                    format!("{shown}: {error}"),
                    "create the folder, or set hooks.directory to \"\"",
                );
            }
            Err(Unusable::Untrusted(problem)) => {
                let remedy = "hooks run as the service's user, so no other user may be able to write there";
                return self.bad(what, format!("no hook of this folder is run: {problem}"), remedy);
            }
        };
        let run = found.iter().filter(|one| one.problem.is_none()).count();
        self.good(what, format!("{shown}: {run} hooks"));
        if run > 0 && !post_on_failure {
            self.doubtful(
                "hooks.post_on_failure",
                "false: after a failed operation, the post of a hook is only called if its pre printed a line \
                 \"quiesced\"",
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
                    self.doubtful(&what, format!("is not run: it {problem}"), "fix that, or remove it from the folder");
                }
            }
        }
    }

    fn sync(&mut self, hooks: &config::Hooks, sync: &config::Sync) {
        let what = "hooks.sync";
        if let Err(error) = Hooks::new(hooks.clone()) {
            return self.bad(what, error, "name a readable certificate in hooks.sync.ca_certificate");
        }
        self.good(what, format!("used for VMs that request it, and for {} that the config names", sync.urls.len()));
        if let Some(weakness) = config::weakness(&sync.secret) {
            self.doubtful(
                "hooks.sync.secret",
                format!("{weakness}: an attacker who guesses it can freeze guests"),
                "create one with `openssl rand -hex 32`, and set it in the guests' servers too",
            );
        }
        if sync.hosts.iter().any(|host| host == "*") && !matches!(sync.trust, Trust::CaFile(_)) {
            self.doubtful(
                "hooks.sync.hosts",
                "the sync secret is sent to any host that a VM's description names",
                "list the guests' hosts, or name their CA in hooks.sync.ca_certificate",
            );
        }
        if !sync.post_on_failure {
            self.doubtful(
                "hooks.sync.post_on_failure",
                "false: post is not called after a failed snapshot, so a quiesced guest may stay frozen",
                "set it to true, unless the guests thaw by themselves",
            );
        }
        if sync.trust == Trust::InsecureSkipVerify {
            self.doubtful(
                "hooks.sync.insecure_skip_verify",
                "guests' certificates are not checked, so the sync secret can go to an attacker",
                "name the guests' CA in hooks.sync.ca_certificate",
            );
        }
    }
}
