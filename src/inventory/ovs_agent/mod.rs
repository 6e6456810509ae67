//! stub
use std::path::{Path, PathBuf};
pub const REPOSITORIES: &str = "repository";
pub const SERVER: &str = "server";
#[derive(Clone, Debug)]
pub struct RepositoryEntry {
    pub id: String,
    pub mount_point: Option<PathBuf>,
    pub alias: Option<String>,
    pub manager_uuid: Option<String>,
    pub version: Option<String>,
    pub filesystem: Option<String>,
    pub problem: Option<String>,
}
pub fn repositories(_folder: &Path) -> Result<Vec<RepositoryEntry>, std::io::Error> {
    Err(std::io::Error::other("stub"))
}
pub fn manager_address(_folder: &Path) -> Result<Option<String>, std::io::Error> {
    Err(std::io::Error::other("stub"))
}
