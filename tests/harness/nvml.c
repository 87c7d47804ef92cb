/* Stands in for libnvidia-ml.so.1: what pynvml asks it is answered from a table that a test fills in. It is a file, which
   any process may map: that of NVML_TABLE, if the process that loads this has it. Without a filled table there is no
   driver. Declarations and numbers are those of nvml.h. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, NO_DRIVER = 9, GPU_IS_LOST = 15 };
enum { GPUS = 8, PROCESSES = 8 };

typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process;
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned gpu, memory; } rates;

/* tests/harness/nvml_library.py has the same. */
typedef struct {
  int lost, mig;
  unsigned long long total, used;
  unsigned busy, celsius, milliwatts, process_count;
  process processes[PROCESSES];
} gpu;

typedef struct { int has_driver; unsigned count; gpu gpus[GPUS]; } machine;

static machine none, *table = &none;

int use_table(const char *path) {
  int file = open(path, O_RDWR);
  void *mapped = file < 0 ? MAP_FAILED : mmap(NULL, sizeof(machine), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (file >= 0) close(file);
  if (mapped == MAP_FAILED) return -1;
  table = mapped;
  return 0;
}

__attribute__((constructor)) static void find_table(void) {
  const char *path = getenv("NVML_TABLE");
  if (path && use_table(path) != 0) abort();
}

int nvmlInitWithFlags(unsigned flags) { return table->has_driver ? SUCCESS : NO_DRIVER; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == GPU_IS_LOST ? "GPU is lost" : "as the test wants it"; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
  snprintf(version, length, "580.95.05");
  return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) { *count = table->count; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, gpu **handle) {
  if (index >= table->count) return NOT_FOUND;
  *handle = &table->gpus[index];
  return (*handle)->lost ? GPU_IS_LOST : SUCCESS;
}

int nvmlDeviceGetUUID(gpu *handle, char *uuid, unsigned length) {
  if (handle->lost) return GPU_IS_LOST;
  snprintf(uuid, length, "GPU-%d", (int)(handle - table->gpus));
  return SUCCESS;
}

int nvmlDeviceGetName(gpu *handle, char *name, unsigned length) {
  if (handle->lost) return GPU_IS_LOST;
  snprintf(name, length, "Stand-in");
  return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(gpu *handle, memory *info) {
  if (handle->lost) return GPU_IS_LOST;
  *info = (memory){handle->total, handle->total - handle->used, handle->used};
  return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(gpu *handle, rates *info) {
  if (handle->lost) return GPU_IS_LOST;
  if (handle->mig) return NOT_SUPPORTED;
  *info = (rates){handle->busy, 0};
  return SUCCESS;
}

int nvmlDeviceGetTemperature(gpu *handle, int sensor, unsigned *celsius) {
  *celsius = handle->celsius;
  return handle->lost ? GPU_IS_LOST : SUCCESS;
}

int nvmlDeviceGetPowerUsage(gpu *handle, unsigned *milliwatts) {
  *milliwatts = handle->milliwatts;
  return handle->lost ? GPU_IS_LOST : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(gpu *handle, unsigned *count, process *processes) {
  if (handle->lost) return GPU_IS_LOST;
  unsigned room = *count;
  *count = handle->process_count;
  if (room < handle->process_count) return INSUFFICIENT_SIZE;
  if (processes) memcpy(processes, handle->processes, handle->process_count * sizeof(process));
  return SUCCESS;
}
