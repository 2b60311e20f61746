//! TLS 1.3 over non-blocking sockets, for client and origin, and the certificates that a comparison makes for itself.
//!
//! Called by `socket`, `main` and `compare`. All sides of a comparison get the same of everything: AES-128-GCM, X25519,
//! ECDSA with P-256; nothing is resumed and no tickets are sent, because what is measured is a full handshake. It
//! refuses TLS 1.2.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, RootCertStore, ServerConfig,
    ServerConnection, SignatureScheme,
};

/// Ciphertext taken from the kernel in one call.
const READ_BYTES: usize = 64 * 1024;
/// Ciphertext that waits for the socket, at most; writing is refused beyond that.
const WRITE_BYTES_MAX: usize = 128 * 1024;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// A socket with TLS on it. It behaves as a socket does: what cannot go on now is `WouldBlock`, and a read that fills
/// less than it could has emptied the socket.
pub(crate) struct TlsStream {
    pub(crate) socket: TcpStream,
    tls: Connection,
    /// Ciphertext that was read from the socket and not taken in yet.
    held: Vec<u8>,
}

impl TlsStream {
    pub(crate) fn client(
        socket: TcpStream,
        config: &Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Self> {
        let tls = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        Ok(Self { socket, tls: tls.into(), held: Vec::new() })
    }

    pub(crate) fn server(socket: TcpStream, config: &Arc<ServerConfig>) -> io::Result<Self> {
        let tls = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        Ok(Self { socket, tls: tls.into(), held: Vec::new() })
    }

    /// Goes on with the handshake; true once it is done.
    pub(crate) fn handshake(&mut self) -> io::Result<bool> {
        loop {
            self.flush()?;
            if !self.tls.is_handshaking() {
                return Ok(true);
            }
            match self.take_in() {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// What ALPN chose.
    pub(crate) fn protocol(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    pub(crate) fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        loop {
            match self.tls.reader().read(&mut bytes[filled..]) {
                Ok(0) => return Ok(filled), // the peer has said that it is done
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self.take_in() {
                    Ok(0) => return Ok(filled), // closed without a word: as an end, bodies have lengths
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock && filled > 0 => {
                        return Ok(filled);
                    }
                    Err(error) => return Err(error),
                },
                Err(error) => return Err(error),
            }
            if filled == bytes.len() {
                return Ok(filled);
            }
        }
    }

    /// Gives ciphertext to TLS: what is held first, then one read from the socket.
    fn take_in(&mut self) -> io::Result<usize> {
        if !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            return self.process(&held);
        }
        BUFFER.with_borrow_mut(|buffer| match self.socket.read(buffer)? {
            0 => Ok(0),
            n => self.process(&buffer[..n]),
        })
    }

    /// Takes in ciphertext up to the first plaintext; the rest is held. Returns how much was taken.
    fn process(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.tls.read_tls(&mut rest)? == 0 {
                return Ok(0); // after the peer's close: nothing more counts
            }
            let state = self.tls.process_new_packets().map_err(|error| {
                let _ = self.tls.write_tls(&mut self.socket); // the alert that says why
                io::Error::new(io::ErrorKind::InvalidData, error)
            })?;
            if state.plaintext_bytes_to_read() > 0 {
                break;
            }
        }
        self.held.extend_from_slice(rest);
        if self.tls.wants_write() {
            self.flush()?;
        }
        Ok(bytes.len() - rest.len())
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flush()?;
        if self.tls.wants_write() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let n = self.tls.writer().write(&bytes[..bytes.len().min(WRITE_BYTES_MAX / 2)])?;
        self.flush()?;
        Ok(n)
    }

    /// Writes ciphertext as far as the socket takes it.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Says that nothing more will come.
    pub(crate) fn say_goodbye(&mut self) {
        self.tls.send_close_notify();
        let _ = self.flush(); // a peer that is gone needs no goodbye
    }
}

/// Whom a client believes, and who it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClientFiles<'a> {
    /// PEM files.
    pub(crate) ca: Option<&'a Path>,
    /// Believe anybody.
    pub(crate) insecure: bool,
    pub(crate) pair: Option<(&'a Path, &'a Path)>,
}

/// Offers exactly one protocol by ALPN.
pub(crate) fn client_config(files: &ClientFiles<'_>, http2: bool) -> Result<Arc<ClientConfig>, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| e.to_string())?;
    let builder = if files.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody))
    } else {
        let ca = files.ca.ok_or("https needs --ca FILE, or --insecure")?;
        let mut roots = RootCertStore::empty();
        for root in chain(ca)? {
            roots.add(root).map_err(|e| format!("{}: {e}", ca.display()))?;
        }
        builder.with_root_certificates(roots)
    };
    let mut config = match files.pair {
        Some((certificate, key)) => builder
            .with_client_auth_cert(chain(certificate)?, private_key(key)?)
            .map_err(|e| format!("{}: {e}", certificate.display()))?,
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(Arc::new(config))
}

/// Speaks HTTP/2 to whoever offers it, else HTTP/1.1.
pub(crate) fn server_config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, String> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| e.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain(certificate)?, private_key(key)?)
        .map_err(|e| format!("{}: {e}", certificate.display()))?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    })
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let named = |e: rustls::pki_types::pem::Error| format!("{}: {e}", path.display());
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(named)?.collect::<Result<_, _>>().map_err(named)?;
    if chain.is_empty() { Err(format!("{} holds no certificate", path.display())) } else { Ok(chain) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// For `--insecure`: any certificate will do, if its owner signs the handshake.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
