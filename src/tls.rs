//! TLS on both sides: the certificates of the listening port, and the trust in those of RabbitMQ and databases. Both are read from PEM files
//! and read again on SIGHUP; connections that exist keep what they began with.

mod anybody;
mod validity;

use std::{
    io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
    time::SystemTime,
};

use thiserror::Error;
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        ClientConfig, ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier,
        crypto::{CryptoProvider, ring},
        pki_types::{
            CertificateDer, PrivateKeyDer, ServerName,
            pem::{self, PemObject},
        },
        server::WebPkiClientVerifier,
    },
};

use crate::config::{ListenTls, UpstreamTls};

/// Why there is no TLS.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file is not PEM, or holds none of what it is for.
    #[error("{} holds no usable PEM {wanted}: {reason}", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        wanted: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// The files can be read, but they don't fit: a key of another certificate, say.
    #[error("{}: {reason}", path.display())]
    Unfit {
        /// The file to look at.
        path: PathBuf,
        /// What rustls says.
        reason: String,
    },
    /// The system has no certificate authorities.
    #[error(
        "no certificate authorities were found on this system ({0}); name a file: in upstream.tls.ca for RabbitMQ, in sslrootcert for a database"
    )]
    NoSystemRoots(String),
    /// The host of an upstream URL can't stand in a certificate.
    #[error("`{0}` is neither a DNS name nor an IP address")]
    BadServerName(String),
}

/// The TLS side of the listening port.
#[derive(Debug)]
pub struct ServerTls {
    current: RwLock<Arc<Served>>,
}

/// What is in force.
#[derive(Debug)]
struct Served {
    config: Arc<ServerConfig>,
    /// Of the certificate and those it stands on in its file; none where that can't be read.
    validity: Option<RangeInclusive<SystemTime>>,
    /// The file, for errors.
    path: PathBuf,
}

impl ServerTls {
    /// Reads certificate, key and, when there is one, the authorities of client certificates.
    /// # Errors
    /// [`TlsError`], naming the file.
    pub fn load(files: &ListenTls) -> Result<Self, TlsError> {
        Ok(Self { current: RwLock::new(server_config(files)?) })
    }

    /// For the next connection: the certificates now in force.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&read(&self.current).config))
    }

    /// Until when the certificate now in force, and those it stands on in its file, are valid.
    pub fn not_after(&self) -> Option<SystemTime> {
        read(&self.current).validity.as_ref().map(|validity| *validity.end())
    }

    /// Whether clients that look at the time would take the certificate now.
    /// # Errors
    /// [`TlsError::Unfit`]: it has expired, or is not valid yet.
    pub fn check_time(&self, now: SystemTime) -> Result<(), TlsError> {
        let served = read(&self.current);
        let Some(validity) = &served.validity else { return Ok(()) };
        let (from, until) = (validity.start(), validity.end());
        let reason = if now > *until {
            format!("the certificate expired at {}", humantime::format_rfc3339_seconds(*until))
        } else if now < *from {
            format!("the certificate is not valid before {}", humantime::format_rfc3339_seconds(*from))
        } else {
            return Ok(());
        };
        Err(TlsError::Unfit { path: served.path.clone(), reason })
    }

    /// Whether the certificate is valid in the same time as the other's.
    pub fn is_valid_like(&self, other: &Self) -> bool {
        read(&self.current).validity == read(&other.current).validity
    }

    /// From the next connection on, what `fresh` has loaded counts.
    pub fn replace(&self, fresh: &Self) {
        write(&self.current, read(&fresh.current));
    }
}

/// The TLS side of the connections to RabbitMQ, checkers and databases.
#[derive(Debug)]
pub struct ClientTls(RwLock<Arc<ClientConfig>>);

impl ClientTls {
    /// Reads the authorities: the file, or else those of the system.
    /// # Errors
    /// [`TlsError`], naming the file.
    pub fn load(trust: &UpstreamTls) -> Result<Self, TlsError> {
        client_config(trust).map(RwLock::new).map(Self)
    }

    /// Trusts whoever answers: against those who only listen.
    pub fn trusting_anybody() -> Self {
        let verifier = Arc::new(anybody::Anybody(provider()));
        let builder = client_builder().dangerous().with_custom_certificate_verifier(verifier);
        Self(RwLock::new(Arc::new(builder.with_no_client_auth())))
    }

    /// For the next connection: the authorities now in force.
    pub fn connector(&self) -> TlsConnector {
        TlsConnector::from(read(&self.0))
    }

    /// From the next connection on, what `fresh` has loaded counts.
    pub fn replace(&self, fresh: &Self) {
        write(&self.0, read(&fresh.0));
    }
}

/// The name that RabbitMQ's certificate must carry: the host of the upstream URL.
/// # Errors
/// [`TlsError::BadServerName`].
pub(crate) fn server_name(host: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(host.to_owned()).map_err(|_| TlsError::BadServerName(host.to_owned()))
}

fn server_config(files: &ListenTls) -> Result<Arc<Served>, TlsError> {
    let chain = certificates(&files.certificate)?;
    let validity = chain
        .iter()
        .filter_map(|certificate| validity::of(certificate))
        .reduce(|one, other| *one.start().max(other.start())..=*one.end().min(other.end()));
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| pem_error(&files.key, "private key", error))?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring offers TLS 1.2 and 1.3");
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots(path)?.into(), provider())
                .build()
                .map_err(|error| TlsError::Unfit { path: path.clone(), reason: error.to_string() })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let config = builder
        .with_single_cert(chain, key)
        .map_err(|error| TlsError::Unfit { path: files.certificate.clone(), reason: error.to_string() })?;
    Ok(Arc::new(Served { config: Arc::new(config), validity, path: files.certificate.clone() }))
}

fn client_config(trust: &UpstreamTls) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = match &trust.ca {
        Some(path) => roots(path)?,
        None => system_roots()?,
    };
    Ok(Arc::new(client_builder().with_root_certificates(roots).with_no_client_auth()))
}

fn client_builder() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring offers TLS 1.2 and 1.3")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError::Unfit { path: path.to_owned(), reason: error.to_string() })?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // A bundle may hold old certificates that no longer parse; the others still count.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let reasons: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        return Err(TlsError::NoSystemRoots(reasons.join("; ")));
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match found {
        Ok(certificates) if certificates.is_empty() => Err(pem_error(path, "certificate", pem::Error::NoItemsFound)),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(pem_error(path, "certificate", error)),
    }
}

fn pem_error(path: &Path, wanted: &'static str, error: pem::Error) -> TlsError {
    let path = path.to_owned();
    match error {
        pem::Error::Io(source) => TlsError::Unreadable { path, source },
        // These two show the file's content, which may be part of a key.
        pem::Error::MissingSectionEnd { .. } | pem::Error::IllegalSectionStart { .. } => {
            TlsError::NotPem { path, wanted, reason: "it is cut off or damaged".into() }
        }
        other => TlsError::NotPem { path, wanted, reason: other.to_string() },
    }
}

fn read<T>(current: &RwLock<Arc<T>>) -> Arc<T> {
    // A writer only stores a finished value, so one that panicked has left nothing half done.
    current.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
}

fn write<T>(current: &RwLock<Arc<T>>, new: Arc<T>) {
    *current.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = new;
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// A folder with an authority and, after [`Folder::issue`], certificates of it.
    struct Folder {
        dir: TempDir,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Folder {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let mut params = CertificateParams::new([]).expect("no names");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().expect("a key");
            let certificate = params.self_signed(&key).expect("a certificate");
            fs::write(dir.path().join("ca.pem"), certificate.pem()).expect("written");
            Folder { dir, issuer: Issuer::new(params, key) }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// Writes `certificate.pem` and `key.pem` for `localhost`, with `subject` to tell them apart.
        fn issue(&self, subject: &str) {
            let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a DNS name");
            params.distinguished_name.push(DnType::CommonName, subject);
            let key = KeyPair::generate().expect("a key");
            let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
            fs::write(self.path("certificate.pem"), certificate.pem()).expect("written");
            fs::write(self.path("key.pem"), key.serialize_pem()).expect("written");
        }

        fn files(&self) -> ListenTls {
            ListenTls { certificate: self.path("certificate.pem"), key: self.path("key.pem"), client_ca: None }
        }
    }

    /// Shakes hands and sends one byte each way; the server's certificate as the client saw it.
    async fn talk(server: &ServerTls, client: &ClientTls, host: &str) -> io::Result<Vec<u8>> {
        let (near, far) = duplex(64 * 1024);
        let accept = async {
            let mut stream = server.acceptor().accept(far).await?;
            let byte = stream.read_u8().await?;
            stream.write_u8(byte).await?;
            stream.shutdown().await
        };
        let connect = async {
            let mut stream = client.connector().connect(server_name(host).expect("a name"), near).await?;
            stream.write_u8(7).await?;
            assert_eq!(stream.read_u8().await?, 7);
            let (_, session) = stream.get_ref();
            Ok(session.peer_certificates().expect("a certificate")[0].to_vec())
        };
        let (accepted, connected) = tokio::join!(accept, connect);
        accepted.and(connected)
    }

    #[tokio::test]
    async fn a_client_that_trusts_the_authority_connects_and_any_other_does_not() {
        let (folder, stranger) = (Folder::new(), Folder::new());
        folder.issue("one");
        let server = ServerTls::load(&folder.files()).expect("the files fit");
        let client = ClientTls::load(&UpstreamTls { ca: Some(folder.path("ca.pem")) }).expect("an authority");
        talk(&server, &client, "localhost").await.expect("a handshake");
        talk(&server, &client, "elsewhere.example").await.expect_err("the certificate is for localhost");
        let wary = ClientTls::load(&UpstreamTls { ca: Some(stranger.path("ca.pem")) }).expect("an authority");
        talk(&server, &wary, "localhost").await.expect_err("the authority is another");
    }

    #[tokio::test]
    async fn with_client_ca_a_client_without_certificate_is_refused() {
        let folder = Folder::new();
        folder.issue("one");
        let files = ListenTls { client_ca: Some(folder.path("ca.pem")), ..folder.files() };
        let server = ServerTls::load(&files).expect("the files fit");
        let client = ClientTls::load(&UpstreamTls { ca: Some(folder.path("ca.pem")) }).expect("an authority");
        talk(&server, &client, "localhost").await.expect_err("no client certificate");
    }

    #[tokio::test]
    async fn what_was_loaded_anew_counts_and_what_does_not_fit_is_not_loaded() {
        let folder = Folder::new();
        folder.issue("one");
        let server = ServerTls::load(&folder.files()).expect("the files fit");
        let client = ClientTls::load(&UpstreamTls { ca: Some(folder.path("ca.pem")) }).expect("an authority");
        let first = talk(&server, &client, "localhost").await.expect("a handshake");
        let until = server.not_after().expect("it can be read");
        assert!(until > SystemTime::now() && server.check_time(SystemTime::now()).is_ok());
        let second = std::time::Duration::from_secs(1);
        let late = server.check_time(until + second).expect_err("it has expired").to_string();
        assert!(late.contains("certificate.pem: the certificate expired at "), "{late}");
        let early = server.check_time(SystemTime::UNIX_EPOCH).expect_err("it is not valid yet").to_string();
        assert!(early.contains("is not valid before "), "{early}");

        folder.issue("two");
        server.replace(&ServerTls::load(&folder.files()).expect("the new files fit"));
        let second = talk(&server, &client, "localhost").await.expect("a handshake");
        assert_ne!(first, second);

        let key = KeyPair::generate().expect("a key");
        fs::write(folder.path("key.pem"), key.serialize_pem()).expect("written");
        let error = ServerTls::load(&folder.files()).expect_err("the key is of another certificate").to_string();
        assert!(error.contains("certificate.pem"), "{error}");
        assert_eq!(talk(&server, &client, "localhost").await.expect("a handshake"), second);
    }

    #[test]
    fn errors_name_the_file_and_never_show_it() {
        let folder = Folder::new();
        folder.issue("one");
        let load = |files| ServerTls::load(&files).expect_err("a bad file").to_string();
        let missing = load(ListenTls { key: folder.path("nothing.pem"), ..folder.files() });
        assert!(missing.starts_with("cannot read ") && missing.contains("nothing.pem"), "{missing}");
        let wrong = load(ListenTls { certificate: folder.path("key.pem"), ..folder.files() });
        assert!(wrong.contains("key.pem holds no usable PEM certificate"), "{wrong}");
        fs::write(folder.path("cut.pem"), "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n").expect("written");
        let cut = load(ListenTls { key: folder.path("cut.pem"), ..folder.files() });
        assert!(cut.contains("cut.pem holds no usable PEM private key") && !cut.contains("c2VjcmV0"), "{cut}");
    }
}
