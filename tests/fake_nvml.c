/* A libnvidia-ml that reads its GPUs from the text file named by FAKE_NVML: one line each,
   "util used_bytes total_bytes milliwatts limit_milliwatts celsius pid:bytes pid:bytes …" or "lost"; "hang" never answers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_t;
typedef struct {
    int lost; unsigned util; unsigned long long used, total; unsigned power, limit, celsius; unsigned count;
    process_t processes[64];
} gpu_t;

static gpu_t gpus[16];

static unsigned load(void) {
    char line[8192]; unsigned n = 0;
    FILE *file = fopen(getenv("FAKE_NVML") ? getenv("FAKE_NVML") : "", "r");
    if (!file) return 0;
    while (n < 16 && fgets(line, sizeof line, file)) {
        gpu_t *g = &gpus[n];
        memset(g, 0, sizeof *g);
        while (!strncmp(line, "hang", 4)) sleep(1000);
        if (!strncmp(line, "lost", 4)) { g->lost = 1; n++; continue; }
        int at = 0, step = 0;
        if (sscanf(line, "%u %llu %llu %u %u %u%n", &g->util, &g->used, &g->total, &g->power, &g->limit, &g->celsius, &at) < 6) continue;
        while (g->count < 64 && sscanf(line + at, " %u:%llu%n", &g->processes[g->count].pid, &g->processes[g->count].used, &step) == 2) { at += step; g->count++; }
        n++;
    }
    fclose(file);
    return n;
}

int nvmlInit_v2(void) { return getenv("FAKE_NVML") ? 0 : 9; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : code == 9 ? "Driver Not Loaded" : "Unknown Error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = load(); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = &gpus[index]; return gpus[index].lost ? 15 : 0; }
int nvmlDeviceGetName(void *device, char *text, unsigned size) { (void)device; snprintf(text, size, "Fake GPU"); return 0; }
int nvmlDeviceGetUUID(void *device, char *text, unsigned size) { snprintf(text, size, "GPU-fake-%d", (int)((gpu_t *)device - gpus)); return 0; }
int nvmlDeviceGetMinorNumber(void *device, unsigned *minor) { *minor = (unsigned)((gpu_t *)device - gpus); return 0; }
int nvmlDeviceGetUtilizationRates(void *device, unsigned *two) { two[0] = ((gpu_t *)device)->util; two[1] = 0; return 0; }
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *three) {
    gpu_t *g = device; three[0] = g->total; three[1] = g->total - g->used; three[2] = g->used; return 0;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) { *milliwatts = ((gpu_t *)device)->power; return 0; }
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *milliwatts) { *milliwatts = ((gpu_t *)device)->limit; return 0; }
int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *celsius) { (void)sensor; *celsius = ((gpu_t *)device)->celsius; return 0; }
/* What is wrong with them, from the file that FAKE_NVML names with ".health" appended: a line "ecc pending failed throttle" each. */
static int health(void *device, unsigned long long *four) {
    char path[4096], line[256]; int n = (int)((gpu_t *)device - gpus), found = 0;
    snprintf(path, sizeof path, "%s.health", getenv("FAKE_NVML") ? getenv("FAKE_NVML") : "");
    FILE *file = fopen(path, "r");
    if (!file) return 3;
    for (; n >= 0 && fgets(line, sizeof line, file); n--)
        found = n == 0 && sscanf(line, "%llu %llu %llu %llx", four, four + 1, four + 2, four + 3) == 4;
    fclose(file);
    return found ? 0 : 3;
}
int nvmlDeviceGetPciInfo_v3(void *device, char *info) { memset(info, 0, 68); snprintf(info + 36, 32, "00000000:%02X:00.0", (int)((gpu_t *)device - gpus) + 0x3b); return 0; }
int nvmlDeviceGetTotalEccErrors(void *device, int kind, int counter, unsigned long long *count) {
    unsigned long long four[4]; if (kind != 1 || counter != 0 || health(device, four)) return 3; *count = four[0]; return 0;
}
int nvmlDeviceGetRemappedRows(void *device, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    unsigned long long four[4]; if (health(device, four)) return 3;
    *corrected = *uncorrected = 0; *pending = (unsigned)four[1]; *failed = (unsigned)four[2]; return 0;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *mask) {
    unsigned long long four[4]; if (health(device, four)) return 3; *mask = four[3]; return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process_t *found) {
    gpu_t *g = device;
    if (*count < g->count) { *count = g->count; return 7; }
    *count = g->count;
    memcpy(found, g->processes, g->count * sizeof *found);
    return 0;
}
