//! A build from request to report: read, lower, solve, export. Decides nothing about keys, steps or layers itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rbuild_cache_transfer::{CacheTo, export_cache};
use rbuild_diag::Diagnostic;
use rbuild_engine::{Materialiser, Ports, SolveOptions, solve};
use rbuild_export::{
    BuiltImage, Digests, ExportContext, ExportRequest, Exported, InlineCache, LayerDescriptor, OutputSpec,
};
use rbuild_graph::{MountKind, NetMode, Op, SecurityMode};
use rbuild_lower::{Lowered, MainContext};
use rbuild_ports::{CancelToken, ErrorKind, Snapshot};

use crate::ahead::{Ahead, Queue};
use crate::caches::{Caches, Solve};
use crate::check::Sealing;
use crate::devices::{self, SpecDirs};
use crate::export_context::layers_only;
use crate::frontend::{Frontend, multi_platform};
use crate::history::{self, Historian};
use crate::trace::{self, GraphNotes};
use crate::vertices::{GraphEvents, Task, Vertices};
use crate::{
    BuildError, BuildErrorKind, BuildEvent, BuildEvents, BuildRequest, Entitlement, Report, Store, caches,
    codes,
};

/// Where outputs to `-` go.
#[derive(Clone, Copy, Default)]
pub struct OutputStreams<'a> {
    /// `None` refuses them.
    pub stdout: Option<&'a rbuild_export::Stdout>,
}

/// Builds images in a store. Calls block; several builds may run at once on one builder, each on a thread of its own, and several
/// processes may use one store.
pub struct Builder {
    pub(crate) store: Store,
    runtime: tokio::runtime::Runtime,
}

impl Builder {
    /// A builder on `store`.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub fn new(store: Store) -> Result<Self, BuildError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(4096)
            .thread_keep_alive(std::time::Duration::from_secs(1))
            .build()
            .map_err(|error| rbuild_ports::PortError::io("start", "a runtime", error))?;
        Ok(Self { store, runtime })
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Builds. Must not be called on a thread of an asynchronous runtime.
    ///
    /// # Errors
    /// What is wrong with the request, the Dockerfile, a step, or the machine.
    pub fn build(
        &self,
        request: &BuildRequest,
        streams: &OutputStreams<'_>,
        events: Arc<dyn BuildEvents>,
        cancel: &CancelToken,
    ) -> Result<Report, BuildError> {
        let vertices = Vertices::new(events, self.store.clock());
        self.store.begin_build();
        for warning in self.store.take_warnings() {
            vertices.warn(warning);
        }
        let registry = self.store.registry(request);
        let mut ports = self.store.session(request, &vertices);
        let queue = Queue::of(request, &registry);
        let imports = caches::import(request, &registry, &mut ports, &vertices, queue.as_ref(), cancel);
        let ports = Arc::new(ports);
        let began = self.store.clock().now();
        let plans = self.plan_with(request, &ports, &vertices, cancel)?;
        plans.plans.iter().try_for_each(|plan| empty_cache_mounts(plan, &ports))?;
        if let Some(imports) = &imports {
            plans.plans.iter().for_each(|plan| caches::describe_steps(imports, &plan.graph));
        }
        // The file and the arguments decide it; it is the same for all platforms.
        let epoch = plans.plans.first().and_then(|plan| plan.source_date_epoch);
        let build_ref = build_ref(began);
        let start = || self.store.historian((build_ref.clone(), began));
        let mut historian = start();
        let cache = Caches {
            request,
            store: &self.store,
            registry: &registry,
            ports: &ports,
            imports,
            vertices: &vertices,
            cancel,
        };
        let ahead = queue.map(|queue| queue.start(ports.clone()));
        let solved = self.solve_all(&cache, &plans, &historian);
        match solved {
            Ok(_) => ahead.into_iter().for_each(Ahead::finish),
            Err(_) => drop(ahead),
        }
        let ran = vertices.ran.load(Ordering::Relaxed) > 0;
        let sealing = if ran { self.store.start_sealing() } else { None };
        let exported = solved.and_then(|mut solves| {
            let mut result = self.export(&cache, &solves, epoch, streams);
            if let Err(error) = &result
                && cache.forget_gone(&solves, error)?
            {
                historian.trace();
                historian = start();
                solves = self.solve_all(&cache, &plans, &historian)?;
                result = self.export(&cache, &solves, epoch, streams);
            }
            let exported = result?;
            cache.warn(&exported);
            Ok((exported, self.export_caches(&cache, &solves, &historian)?))
        });
        self.store.finish_build();
        let trace = historian.trace().cloned();
        sealing.into_iter().for_each(Sealing::finish);
        let (exported, cache_manifest) = exported?;
        Ok(Report {
            build_ref,
            exported,
            cache_manifest,
            trace,
            cached: vertices.cached.load(Ordering::Relaxed),
            ran: vertices.ran.load(Ordering::Relaxed),
        })
    }

    /// What would be built, one a platform, without running anything; images are resolved.
    ///
    /// # Errors
    /// As `build`, up to the first step.
    pub fn plan(
        &self,
        request: &BuildRequest,
        events: Arc<dyn BuildEvents>,
        cancel: &CancelToken,
    ) -> Result<Vec<Lowered>, BuildError> {
        let vertices = Vertices::new(events, self.store.clock());
        let ports = self.store.session(request, &vertices);
        Ok(self.plan_with(request, &ports, &vertices, cancel)?.plans)
    }

    fn plan_with(
        &self,
        request: &BuildRequest,
        ports: &Ports,
        vertices: &Arc<Vertices>,
        cancel: &CancelToken,
    ) -> Result<Plans, BuildError> {
        let frontend = Frontend::read(request, ports, self.store.path(), vertices, cancel)?;
        let show = |findings: Vec<Diagnostic>| {
            findings.into_iter().for_each(|finding| vertices.send(BuildEvent::Finding(finding)));
        };
        let mut plans = frontend.plan(request, ports, vertices, cancel).map_err(|unplanned| {
            show(unplanned.findings);
            *unplanned.error
        })?;
        show(std::mem::take(&mut plans.findings));
        for plan in &mut plans.plans {
            check_entitlements(plan, &request.allow)?;
            devices::grant(plan, &request.allow, &SpecDirs(request.cdi_spec_dirs.clone()))?;
        }
        let ignore = frontend.options.first().and_then(|options| match &options.context {
            MainContext::Local(ignore) => Some(ignore),
            _ => None,
        });
        let mut trace = trace::beginning(request, &frontend.file, &frontend.source, ignore);
        trace.platforms = frontend.options.iter().map(|options| options.platform.to_string()).collect();
        let file = frontend.path.clone().unwrap_or_else(|| PathBuf::from(frontend.source.name()));
        let what = history::what(&file, request.context.label());
        Ok(Plans { plans: plans.plans, aliases: plans.aliases, trace, what })
    }

    fn solve_all(
        &self,
        cache: &Caches<'_>,
        plans: &Plans,
        historian: &Arc<Historian>,
    ) -> Result<Vec<Solve>, BuildError> {
        let Caches { request, ports, vertices, cancel, .. } = cache;
        let options = SolveOptions { jobs: request.jobs.unwrap_or(usize::MAX) };
        let aliases = Arc::new(plans.aliases.clone());
        let mut graphs = vec![];
        let solves: Vec<_> = plans
            .plans
            .iter()
            .map(|plan| {
                let graph = Arc::new(plan.graph.clone());
                let targets: Vec<_> = plan.target.into_iter().collect();
                let notes = Arc::new(GraphNotes::new(
                    graphs.len(),
                    historian.clone(),
                    graph.clone(),
                    targets.clone(),
                ));
                graphs.push(notes.clone());
                let (ports, vertices, cancel, aliases) =
                    ((*ports).clone(), (*vertices).clone(), (*cancel).clone(), aliases.clone());
                async move {
                    let events = Arc::new(GraphEvents::new(vertices, graph.clone(), notes));
                    let solved = solve(graph.clone(), &targets, options, ports, events, aliases, &cancel)
                        .await
                        .map_err(|error| BuildError::solve(error, &graph, request))?;
                    let snapshot = solved.outputs.into_iter().next().unwrap_or_default();
                    let base_history = plan.base_config.as_ref().map_or(0, |config| config.history.len());
                    let image = BuiltImage {
                        platform: plan.platform.clone(),
                        snapshot,
                        config: plan.config.clone(),
                        base_history,
                    };
                    let records = solved.records.into_iter().flatten().collect();
                    let mounts = caches::mounts(&graph, &solved.steps);
                    Ok::<_, BuildError>(Solve { image, steps: solved.steps, records, mounts })
                }
            })
            .collect();
        let solved = self.runtime.block_on(futures_util::future::try_join_all(solves));
        trace::finish(plans.trace.clone(), graphs, historian, plans.what.clone(), cache.told());
        solved
    }

    fn export(
        &self,
        cache: &Caches<'_>,
        solves: &[Solve],
        source_date_epoch: Option<i64>,
        streams: &OutputStreams<'_>,
    ) -> rbuild_ports::Result<Exported> {
        let Caches { request, vertices, .. } = cache;
        let mut outputs = request.outputs.clone();
        if outputs.is_empty() && (!request.tags.is_empty() || request.want > Digests::None) {
            // Kept in the own store under its names, if it has any.
            outputs.extend(OutputSpec::from_pairs("image", []));
        }
        if outputs.is_empty() {
            return Ok(Exported::default());
        }
        let task = vertices.task(outputs.first().map_or("exporting to image", describe));
        let images: Vec<BuiltImage> = solves.iter().map(|solve| solve.image.clone()).collect();
        let inline = |image: &BuiltImage, layers: &[LayerDescriptor]| cache.inline(solves, image, layers);
        let inline: Option<&InlineCache<'_>> =
            if request.cache_to.contains(&CacheTo::Inline) { Some(&inline) } else { None };
        let export = ExportRequest {
            images: &images,
            // What is wrong with it was said when the file was read.
            indexed: multi_platform(request).unwrap_or(images.len() > 1),
            outputs: &outputs,
            names: &request.tags,
            annotations: &request.annotations,
            source_date_epoch,
            inline_cache: inline,
            want: request.want,
        };
        let result = self.with_context(cache, &task, streams, |context| {
            let mut result = rbuild_export::export(context, &export);
            // A damaged blob was dropped when it was found, and is fetched or made anew. The same damage twice is another fault.
            // What went to standard output cannot be taken back.
            let mut last = String::new();
            while let Err(error) = &result
                && error.kind == ErrorKind::Corrupt
                && error.message != last
                && streams.stdout.is_none()
            {
                vertices.warn(format!("{}; trying again", error.message));
                last.clone_from(&error.message);
                result = rbuild_export::export(context, &export);
            }
            result
        });
        task.finish(result)
    }

    /// All `--cache-to` but the inline one, whose place is in the images.
    fn export_caches(
        &self,
        cache: &Caches<'_>,
        solves: &[Solve],
        historian: &Historian,
    ) -> Result<Option<rbuild_oci::Descriptor>, BuildError> {
        let mut manifest = None;
        let mut graphs = None;
        for to in &cache.request.cache_to {
            let Some(options) = to.options() else { continue };
            if graphs.is_none() {
                graphs = Some(cache.graphs(solves)?);
            }
            let notes = if options.explain { historian.notes() } else { None };
            let task = cache.vertices.task(caches::describe(to));
            let result = cache.target(to).and_then(|target| {
                self.with_context(cache, &task, &OutputStreams::default(), |context| {
                    export_cache(
                        context,
                        graphs.as_deref().unwrap_or_default(),
                        &*target,
                        options,
                        notes.as_ref(),
                    )
                })
            });
            match task.finish(result) {
                Ok(exported) => manifest = exported.manifest.or(manifest),
                Err(error) if options.ignore_error && !cache.cancel.is_cancelled() => {
                    cache.vertices.warn(caches::not_exported(to, &error));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(manifest)
    }

    fn with_context<T>(
        &self,
        cache: &Caches<'_>,
        task: &Task,
        streams: &OutputStreams<'_>,
        work: impl FnOnce(&ExportContext<'_>) -> T,
    ) -> T {
        let Caches { registry, ports, cancel, .. } = cache;
        let materialiser = Materialiser::new((*ports).clone());
        let materialise = |snapshot: &Snapshot| materialiser.ensure(snapshot, task, cancel);
        work(&ExportContext {
            materialise: &materialise,
            registry: Some(*registry),
            progress: task,
            stdout: streams.stdout,
            engine: &self.store.engine_access,
            ..layers_only(ports, cancel)
        })
    }
}

/// As BuildKit names the vertex.
fn describe(output: &OutputSpec) -> &'static str {
    match output {
        OutputSpec::Local(_) => "exporting to client directory",
        OutputSpec::Tar(_) => "exporting to client tarball",
        OutputSpec::Oci(_) => "exporting to oci image format",
        OutputSpec::Docker(_) | OutputSpec::Load(_) => "exporting to docker image format",
        OutputSpec::Image(_) | OutputSpec::CacheOnly => "exporting to image",
    }
}

/// A name for the build, as `--metadata-file` has it.
fn build_ref(now: rbuild_ports::Timestamp) -> String {
    let digest = rbuild_digest::Digest::of(format!("{} {}", now.0, std::process::id()));
    format!("default/default/{}", &digest.hex()[..25])
}

/// What is to be solved, and what layers of own images are called.
struct Plans {
    plans: Vec<Lowered>,
    aliases: std::collections::HashMap<rbuild_ports::LayerId, rbuild_ports::LayerId>,
    /// What is known of the build already.
    trace: rbuild_cache_explain::Trace,
    /// Dockerfile and context, for the history.
    what: String,
}

/// Steps that must not use the cache begin with empty cache mounts, as BuildKit's do; one that another build uses stays.
fn empty_cache_mounts(plan: &Lowered, ports: &Ports) -> rbuild_ports::Result<()> {
    let targets: Vec<_> = plan.target.into_iter().map(|edge| edge.node).collect();
    for id in plan.graph.needed(&targets) {
        let node = plan.graph.node(id);
        let Op::Exec(exec) = &node.op else { continue };
        for mount in exec.spec.mounts.iter().filter(|_| node.meta.ignore_cache) {
            if let MountKind::Cache { id, .. } = &mount.kind {
                ports.snapshots.remove_cache_mount(id)?;
            }
        }
    }
    Ok(())
}

/// A step that wants more than a sandbox gives needs the user's word.
fn check_entitlements(plan: &Lowered, allowed: &[Entitlement]) -> Result<(), BuildError> {
    for (_, node) in plan.graph.nodes() {
        let Op::Exec(exec) = &node.op else { continue };
        let missing = match (exec.spec.network, exec.spec.security) {
            (NetMode::Host, _) if !allowed.contains(&Entitlement::NetworkHost) => "network.host",
            (_, SecurityMode::Insecure) if !allowed.contains(&Entitlement::SecurityInsecure) => {
                "security.insecure"
            }
            _ => continue,
        };
        let mut diagnostic =
            Diagnostic::error(codes::DENIED, format!("this step needs {missing}, which was not allowed"))
                .help(format!("if you trust this Dockerfile, build with --allow {missing}"));
        if let Some(place) = &node.meta.place {
            diagnostic = diagnostic.at(&place.file, place.span);
        }
        return Err(BuildError::new(BuildErrorKind::User, diagnostic));
    }
    Ok(())
}
