# A thin face over CMake: CMakeLists.txt is the one place that knows how things are built.

BITS ?= 4
BUILD ?= build
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
CMAKE_FLAGS ?=
# 1: the CUDA backend for all targets, or an error; 0: without it; auto: for this machine, where nvcc is found
CUDA ?= auto
# Debian's Python packages belong to Debian's Python, which need not be the first one in PATH.
PYTHON ?= /usr/bin/python3
# skip: install nothing, everything needed is there
DEPENDENCIES ?= install
SUITES ?=
# make reproduce: QUICK=1 for a first look within ten minutes; SCALE=gpu for larger models
QUICK ?=
SCALE ?= cpu
BENCH_FLAGS ?=
# make fuzz: of each fuzzer
FUZZ_SECONDS ?= 60

# make bundle: BUNDLE_CUDA=0: for CPUs only; the CUDA architectures; some programs instead of all
BUNDLE_CUDA ?= 1
BUNDLE_ARCHITECTURES ?= 80-real;90-real;100-real;120
BUNDLE_PROGRAMS ?=

CUDA_FLAGS_1 = -DTRAIN_QAT_CUDA=ON "-DTRAIN_QAT_CUDA_ARCHITECTURES=80-real;90-real;100-real;120"
CUDA_FLAGS_0 = -DTRAIN_QAT_CUDA=OFF
CUDA_FLAGS_auto = -DTRAIN_QAT_CUDA=AUTO -DTRAIN_QAT_CUDA_ARCHITECTURES=
# An outer `make -j` must not hand its job server to the make that CMake starts.
BUILD_TARGETS = MAKEFLAGS=--no-print-directory cmake --build $(BUILD) --parallel $(JOBS) --target
TEST_PROGRAMS = train_qat train_qat_test train_qat_kernel_test train_qat_kernel_check train_qat_parity \
	train_qat_rank_test train_qat_bench train_qat_lint
BEGIN := $(shell date +%s)
comma = ,
# The kernel tests once more, with sanitizers: $(call SANITIZED,directory,sanitizers,other targets). Under them GCC warns of the
# standard library itself.
SANITIZED = scripts/configure.sh $(BUILD)/$(1) -DTRAIN_QAT_NATIVE=ON -DTRAIN_QAT_CUDA=OFF -DTRAIN_QAT_SANITIZE=$(2) \
	-DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="-O1 -g1 -Wno-maybe-uninitialized" $(CMAKE_FLAGS) >/dev/null && \
	MAKEFLAGS=--no-print-directory cmake --build $(BUILD)/$(1) --parallel $(JOBS) --target train_qat_kernel_test $(3)
INSTALL = @test "$(DEPENDENCIES)" = skip || scripts/install_dependencies.sh

.DEFAULT_GOAL := program
.NOTPARALLEL:
.PHONY: program all configure dependencies quickstart reproduce tools test test-clients fuzz bench bench-ranks bench-gpu bundle clean format help

program: configure
	@$(BUILD_TARGETS) train_qat
	@ln -sfnr $(BUILD)/train_qat train_qat

all: configure
	@$(BUILD_TARGETS) all
	@ln -sfnr $(BUILD)/train_qat train_qat

configure:
	@scripts/configure.sh $(BUILD) $(CUDA_FLAGS_$(CUDA)) $(CMAKE_FLAGS) || { scripts/install_dependencies.sh --check build; exit 1; }

dependencies:
	@scripts/install_dependencies.sh all

quickstart:
	@DEPENDENCIES="$(DEPENDENCIES)" PYTHON="$(PYTHON)" scripts/quickstart.sh "$(BITS)"

reproduce:
	@DEPENDENCIES="$(DEPENDENCIES)" PYTHON="$(PYTHON)" QUICK="$(QUICK)" SCALE="$(SCALE)" scripts/reproduce.sh

tools:
	$(INSTALL) clients
	@test -x out/tools/bin/python || $(PYTHON) -m venv out/tools
	@out/tools/bin/pip install -q --disable-pip-version-check -r scripts/requirements.txt
	@echo "out/tools/bin/python has what scripts/export.py needs"

# Without SUITES every target is built: what is not built rots.
test:
	$(INSTALL) test
	@$(MAKE) --no-print-directory configure
	@! grep -q '^Catch2_DIR:PATH=.*-NOTFOUND' $(BUILD)/CMakeCache.txt || \
		{ echo "make test: error: the tests need Catch2: install the package catch2" >&2; exit 2; }
	@$(BUILD_TARGETS) $(if $(SUITES),$(TEST_PROGRAMS),all)
	@ln -sfnr $(BUILD)/train_qat train_qat
	@$(if $(or $(filter address fuzz_cpp,$(SUITES)),$(if $(SUITES),,all)),$(call SANITIZED,address,address$(comma)undefined,train_qat_fuzz))
	@$(if $(or $(filter thread,$(SUITES)),$(if $(SUITES),,all)),$(call SANITIZED,thread,thread))
	@$(PYTHON) test/run_all.py --build $(BUILD) --jobs $(JOBS) --since $(BEGIN) $(SUITES)

test-clients:
	$(INSTALL) clients
	@$(MAKE) --no-print-directory program
	@$(BUILD_TARGETS) train_qat_tokenize train_qat_logits
	@"$$($(PYTHON) test/clients/environment.py $(BUILD)/clients)" test/clients/run.py --program $(BUILD)/train_qat

fuzz:
	$(INSTALL) test
	@$(call SANITIZED,address,address$(comma)undefined,train_qat_fuzz)
	@$(BUILD)/address/train_qat_fuzz --seconds $(FUZZ_SECONDS) --corpus test/fuzz/corpus --findings $(BUILD)/findings
	@$(PYTHON) test/fuzz/fuzz_prepare.py --seconds $(FUZZ_SECONDS)

bench:
	$(INSTALL) bench
	@$(MAKE) --no-print-directory configure
	@$(BUILD_TARGETS) train_qat_bench
	@$(PYTHON) dev/bench/bench.py --program $(BUILD)/train_qat_bench $(BENCH_FLAGS)

bench-ranks:
	$(INSTALL) bench
	@$(MAKE) --no-print-directory configure
	@$(BUILD_TARGETS) train_qat
	@$(PYTHON) dev/bench/bench_ranks.py --program $(BUILD)/train_qat $(BENCH_FLAGS)

bench-gpu:
	$(INSTALL) build
	@$(MAKE) --no-print-directory configure
	@$(BUILD_TARGETS) train_qat
	@$(PYTHON) dev/bench/bench_gpu.py --program $(BUILD)/train_qat $(BENCH_FLAGS)

bundle:
	@BUILD="$(BUILD)/bundle" JOBS="$(JOBS)" DEPENDENCIES="$(DEPENDENCIES)" CMAKE_FLAGS="$(CMAKE_FLAGS)" \
		BUNDLE_CUDA="$(BUNDLE_CUDA)" BUNDLE_ARCHITECTURES="$(BUNDLE_ARCHITECTURES)" \
		BUNDLE_PROGRAMS="$(BUNDLE_PROGRAMS)" dev/bundle/bundle.sh

# Data and the outputs of runs stay.
clean:
	@test ! -e $(BUILD) || test -f $(BUILD)/CMakeCache.txt || \
		{ echo "make clean: error: $(BUILD) holds no CMake build, so it is not removed" >&2; exit 2; }
	@rm -rf $(BUILD)
	@test ! -L train_qat || rm train_qat

format:
	@find train_qat.cu model kernels data test dev \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) \
		-exec clang-format -i --style=file {} +

help:
	@echo "make                    builds ./train_qat"
	@echo "make CUDA=1             the same with the CUDA backend for sm_80, 90, 100, 120 and later (CUDA=0: without it)"
	@echo "make quickstart         trains a small $(BITS)-bit model on a CPU, in minutes (BITS=1, 1.58, 2, 3, 4, 5, 6, 8; STEPS=)"
	@echo "make reproduce          sweeps of small models, fits of the laws, plots: hours (QUICK=1: ten minutes; SCALE=gpu)"
	@echo "make test               builds and runs all tests (SUITES='cpp emulated': some of them)"
	@echo "make tools              out/tools: a Python environment for scripts/export.py (31 MB from PyPI)"
	@echo "make test-clients       exports and imports, with transformers, llama.cpp and compressed-tensors (0.6 GB from PyPI, once)"
	@echo "make fuzz               mutated inputs of every reader, under sanitizers (FUZZ_SECONDS=$(FUZZ_SECONDS))"
	@echo "make bench              a training step, ours and PyTorch's, side by side (BENCH_FLAGS=--quick, --smoke, ...)"
	@echo "make bench-ranks        many ranks: bytes sent, step times, a sweep's saving (BENCH_FLAGS='bytes sweep': some)"
	@echo "make bench-gpu          ours and PyTorch's on a GPU, 124M to 1.56B (PYTHON=: one with PyTorch for CUDA; BENCH_FLAGS=--help)"
	@echo "make bundle             out/bundle.tar.xz: programs, tests, libraries, to run elsewhere (BUNDLE_CUDA=0: for CPUs only)"
	@echo "make all                builds everything, the test and benchmark programs too"
	@echo "make dependencies       installs all Debian packages; quickstart, test and bench install theirs themselves"
	@echo "make format             clang-format on all C++ and CUDA files"
	@echo "make clean              removes the build; data/cache and out stay"
	@echo "variables               BITS=$(BITS) JOBS=$(JOBS) BUILD=$(BUILD) CMAKE_FLAGS='$(CMAKE_FLAGS)' PYTHON=$(PYTHON)"
	@echo "                        DEPENDENCIES=$(DEPENDENCIES) (skip: install nothing) BENCH_FLAGS='$(BENCH_FLAGS)'"
