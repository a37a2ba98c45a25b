//! Git LFS keeps large files outside a repository. A clone without it has a small text, a pointer,
//! in place of each of them.

/// What to do about a pointer.
pub const GIT_LFS_HELP: &str = "fetch the file: `git lfs pull` in the repository that it is from";

/// Whether a file that begins with these bytes is a pointer.
pub fn is_git_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs.github.com/spec/")
}
